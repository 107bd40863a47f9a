"""Charts as inline SVG: pure functions from numbers to markup.

Colours and line styles are in page.css, by class, so that they follow the reader's light or dark scheme. Texts are
escaped by ElementTree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from markupsafe import Markup

from xmodal.evaluation.table import interval_text

# Units of the view box. A chart is shown about this many CSS pixels wide on a phone and in a column of a wide page,
# so that its texts have one size everywhere.
WIDTH = 440
_MAX_POINTS = 400
_MAX_LABEL = 34


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its interval; NaN where there is none."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart: (x, y) in the order of x, all finite."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Literal["training", "validation"]
    """`validation` has a dot at each point."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityCurve:
    """How often something is right, by how sure it is: mean confidence and accuracy of each bin."""

    name: str
    bins: Sequence[tuple[float, Interval]]
    style: Literal["training", "validation"]


@dataclass(frozen=True)
class _Axis:
    """A linear scale from values to the view box."""

    ticks: list[float]
    start: float
    """Where the first tick lies, in units of the view box."""
    end: float

    def place(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.start + share * (self.end - self.start)


def interval_plot(intervals: Sequence[Interval], *, chance: float, description: str) -> Markup:
    """One row an interval: its label, its numbers, and a dot with a bar below; a dashed line at `chance`."""
    row_height, top, left, right = 46, 22, 12, WIDTH - 12
    bottom = top + row_height * len(intervals)
    known = [number for row in intervals for number in (row.value, row.low, row.high) if math.isfinite(number)]
    lowest = math.floor(min([0.4, *known]) * 10) / 10
    axis = _Axis([round(lowest + 0.1 * i, 1) for i in range(round((1 - lowest) * 10) + 1)], left, right)
    spoken = "; ".join(f"{row.label} {interval_text(row.value, row.low, row.high)}" for row in intervals)
    svg = _svg(WIDTH, bottom + 24, f"{description}: {spoken}; chance {chance}")
    for tick in axis.ticks:
        _line(svg, "grid", axis.place(tick), top, axis.place(tick), bottom)
        _text(svg, "tick", axis.place(tick), bottom + 17, f"{tick:.1f}", anchor="middle")
    _line(svg, "chance", axis.place(chance), top - 4, axis.place(chance), bottom)
    _text(svg, "tick", axis.place(chance), top - 9, f"chance {chance}", anchor="middle")
    for number, row in enumerate(intervals):
        y = top + row_height * number
        _text(svg, "label", left, y + 17, shortened(row.label))
        _text(svg, "label", right, y + 17, interval_text(row.value, row.low, row.high), anchor="end")
        if math.isfinite(row.low) and math.isfinite(row.high):
            _line(svg, "interval", axis.place(row.low), y + 32, axis.place(row.high), y + 32)
        if math.isfinite(row.value):
            _dot(svg, "estimate", axis.place(row.value), y + 32, 6)
    return _markup(svg)


def line_chart(series: Sequence[Series], *, description: str, x_name: str) -> Markup:
    """Lines over a common x; a line of one point is a dot. Series without points are left out.

    With more than one series there is a legend. Of a long series, evenly chosen points are drawn.
    """
    series = [one for one in series if one.points]
    assert series, "a chart needs a point"
    left, right, top, bottom = 58, WIDTH - 14, 28 if len(series) > 1 else 12, 190
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    first_x, last_x = min(0, *xs), max(xs)
    x_axis = _Axis(nice_ticks(first_x, last_x, min(5, max(1, round(last_x - first_x)))), left, right)
    y_axis = _Axis(nice_ticks(min(ys), max(ys), 4), bottom, top)
    svg = _svg(WIDTH, bottom + 44, f"{description}: " + "; ".join(_spoken(one, x_name) for one in series))
    for tick in y_axis.ticks:
        _line(svg, "grid", left, y_axis.place(tick), right, y_axis.place(tick))
        _text(svg, "tick", left - 8, y_axis.place(tick) + 4, number_text(tick), anchor="end")
    for tick in x_axis.ticks:
        _line(svg, "axis", x_axis.place(tick), bottom, x_axis.place(tick), bottom + 4)
        _text(svg, "tick", x_axis.place(tick), bottom + 18, number_text(tick), anchor="middle")
    _line(svg, "axis", left, bottom, right, bottom)
    _text(svg, "tick", (left + right) / 2, bottom + 36, x_name, anchor="middle")
    for one in series:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in thinned(one.points, _MAX_POINTS)]
        path = " ".join(f"{_short(x)},{_short(y)}" for x, y in places)
        ElementTree.SubElement(svg, "polyline", {"class": f"line {one.style}", "points": path})
        if one.style == "validation" or len(places) == 1:
            for x, y in places:
                _dot(svg, f"dot {one.style}", x, y, 3 if len(places) <= 60 else 1.5)
    if len(series) > 1:
        _legend(svg, series, left)
    return _markup(svg)


def reliability_chart(curves: Sequence[ReliabilityCurve], *, description: str) -> Markup:
    """Accuracy over confidence, both in [0, 1], each bin a dot with a bar for its interval; dashed: equality."""
    left, right, top, bottom = 58, WIDTH - 14, 28, 300
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x_axis, y_axis = _Axis(ticks, left, right), _Axis(ticks, bottom, top)
    spoken = "; ".join(
        f"{curve.name}: " + ", ".join(f"{bar.value:.2f} right at {sure:.2f}" for sure, bar in curve.bins)
        for curve in curves
    )
    svg = _svg(WIDTH, bottom + 44, f"{description}: {spoken}")
    for tick in ticks:
        _line(svg, "grid", left, y_axis.place(tick), right, y_axis.place(tick))
        _text(svg, "tick", left - 8, y_axis.place(tick) + 4, f"{tick:.1f}", anchor="end")
        _text(svg, "tick", x_axis.place(tick), bottom + 18, f"{tick:.1f}", anchor="middle")
    _text(svg, "tick", (left + right) / 2, bottom + 36, "confidence", anchor="middle")
    _line(svg, "chance", x_axis.place(0), y_axis.place(0), x_axis.place(1), y_axis.place(1))
    for curve in curves:
        places = [(x_axis.place(sure), bar) for sure, bar in curve.bins]
        for x, bar in places:
            _line(svg, f"interval {curve.style}", x, y_axis.place(bar.low), x, y_axis.place(bar.high))
        path = " ".join(f"{_short(x)},{_short(y_axis.place(bar.value))}" for x, bar in places)
        ElementTree.SubElement(svg, "polyline", {"class": f"line {curve.style}", "points": path})
        for x, bar in places:
            _dot(svg, f"dot {curve.style}", x, y_axis.place(bar.value), 3)
    _legend(svg, [Series(name=curve.name, points=[], style=curve.style) for curve in curves], left)
    return _markup(svg)


def matrix_chart(counts: Sequence[Sequence[int]], names: Sequence[str], *, description: str) -> Markup:
    """A square matrix: each cell with its count and its share of its row, the darker the larger the share."""
    left, top, height = 86, 26, 58
    width = (WIDTH - left - 2) / len(names)
    spoken = "; ".join(
        f"{row} to {column} {count}"
        for row, of_row in zip(names, counts, strict=True)
        for column, count in zip(names, of_row, strict=True)
    )
    svg = _svg(WIDTH, top + height * len(names) + 4, f"{description}: {spoken}")
    for column, name in enumerate(names):
        _text(svg, "tick", left + width * (column + 0.5), top - 9, name, anchor="middle")
    for row, (name, of_row) in enumerate(zip(names, counts, strict=True)):
        y = top + height * row
        _text(svg, "tick", left - 10, y + height / 2 + 4, name, anchor="end")
        for column, count in enumerate(of_row):
            share = count / sum(of_row) if sum(of_row) else 0.0
            x = left + width * column
            cell = {"x": _short(x), "y": _short(y), "width": _short(width - 2), "height": _short(height - 2)}
            # Never so dark that the text on it could not be read.
            ElementTree.SubElement(svg, "rect", {"class": "cell", **cell, "fill-opacity": f"{0.05 + 0.45 * share:.3f}"})
            _text(svg, "share", x + width / 2, y + height / 2 - 3, f"{100 * share:.1f} %", anchor="middle")
            _text(svg, "tick", x + width / 2, y + height / 2 + 15, f"{count}", anchor="middle")
    return _markup(svg)


def stacked_bar(shares: Mapping[str, float]) -> Markup:
    """One horizontal bar; `shares` of its full length, each in the colour of its class. Stretches to its container.

    It is hidden from screen readers: its numbers stand beside it, or in the text of the picture above it.
    """
    svg = ElementTree.Element("svg", {"class": "bar", "width": "100%", "height": "10", "aria-hidden": "true"})
    start = 0.0
    for name, share in shares.items():
        place = {"x": f"{100 * start:.2f}%", "width": f"{100 * share:.2f}%"}
        ElementTree.SubElement(svg, "rect", {"class": name, "height": "100%", **place})
        start += share
    return _markup(svg)


def nice_ticks(low: float, high: float, num_steps: int) -> list[float]:
    """Round numbers at equal distances that enclose `low` and `high`; at least two, about `num_steps` + 1."""
    if high <= low:
        spread = abs(low) * 0.1 or 0.1
        low, high = low - spread, high + spread
    rough = (high - low) / num_steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    # Rounded, so that 0.30000000000000004 / 0.1 is 3 and not 4.
    first, last = math.floor(round(low / step, 9)), math.ceil(round(high / step, 9))
    return [float(f"{place * step:.9g}") for place in range(first, last + 1)]


def number_text(number: float) -> str:
    """A number in at most about 7 characters: `0.25`, `5e-5`, `1500`, `20k`, `2M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 10 * size or (abs(number) >= size and size > 1e3):
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` (2 or more) points, evenly chosen by their place, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def shortened(text: str, most: int = _MAX_LABEL) -> str:
    """The text, cut with … where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _spoken(series: Series, x_name: str) -> str:
    (first_x, first_y), (last_x, last_y) = series.points[0], series.points[-1]
    if len(series.points) == 1:
        return f"{series.name} {first_y:.4g} at {x_name} {first_x:g}"
    return f"{series.name} from {first_y:.4g} at {x_name} {first_x:g} to {last_y:.4g} at {x_name} {last_x:g}"


def _legend(svg: ElementTree.Element, series: Sequence[Series], left: float) -> None:
    for one in series:
        _line(svg, f"line {one.style}", left, 10, left + 22, 10)
        if one.style == "validation":
            _dot(svg, f"dot {one.style}", left + 11, 10, 3)
        _text(svg, "tick", left + 28, 14, one.name)
        left += 28 + 7.5 * len(one.name) + 18


def _svg(width: float, height: float, description: str) -> ElementTree.Element:
    return ElementTree.Element(
        "svg", {"class": "chart", "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": description}
    )


def _line(svg: ElementTree.Element, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": _short(x1), "y1": _short(y1), "x2": _short(x2), "y2": _short(y2)}
    ElementTree.SubElement(svg, "line", {"class": style, **ends})


def _dot(svg: ElementTree.Element, style: str, x: float, y: float, radius: float) -> None:
    ElementTree.SubElement(svg, "circle", {"class": style, "cx": _short(x), "cy": _short(y), "r": f"{radius:g}"})


def _text(svg: ElementTree.Element, style: str, x: float, y: float, content: str, *, anchor: str = "start") -> None:
    attributes = {"class": style, "x": _short(x), "y": _short(y), "text-anchor": anchor}
    ElementTree.SubElement(svg, "text", attributes).text = content


def _short(coordinate: float) -> str:
    return f"{coordinate:.1f}".removesuffix(".0")


def _markup(svg: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
