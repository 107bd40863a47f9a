"""The charts: pure functions of numbers."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.evaluation.table import interval_text
from xmodal.report.charts import (
    Interval,
    ReliabilityCurve,
    Series,
    interval_plot,
    line_chart,
    matrix_chart,
    nice_ticks,
    number_text,
    reliability_chart,
    shortened,
    stacked_bar,
    thinned,
)
from xmodal.report.examples import by_confidence, first_of_each_post, largest_disagreements

finite = st.floats(-1e9, 1e9).filter(lambda number: number == 0 or abs(number) > 1e-9)


@given(low=finite, high=finite, num_steps=st.integers(1, 8))
def test_ticks_enclose_the_numbers_at_equal_distances(low: float, high: float, num_steps: int) -> None:
    low, high = min(low, high), max(low, high)
    ticks = nice_ticks(low, high, num_steps)
    assert 2 <= len(ticks) <= num_steps + 3
    slack = 1e-6 * (ticks[-1] - ticks[0]) + 1e-8 * max(abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-3, atol=slack)


@given(num_points=st.integers(0, 1000), most=st.integers(2, 50))
def test_a_thinned_line_keeps_its_ends_and_its_order(num_points: int, most: int) -> None:
    points = [(float(x), 0.0) for x in range(num_points)]
    chosen = thinned(points, most)
    assert len(chosen) == min(num_points, most)
    assert chosen == sorted(set(chosen))
    assert chosen[:1] == points[:1]
    assert chosen[-1:] == points[-1:]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.25, "0.25"), (5e-5, "5e-5"), (1500, "1500"), (20000, "20k"), (2e6, "2M"), (-0.1, "-0.1")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert number_text(number) == text


def test_intervals_are_told_as_far_as_they_are_known() -> None:
    assert interval_text(0.6349, 0.57, 0.7) == "0.635 [0.570, 0.700]"
    assert interval_text(0.6349, math.nan, math.nan) == "0.635"
    assert interval_text(math.nan, math.nan, math.nan) == "—"


def test_a_long_label_is_cut() -> None:
    assert shortened("student") == "student"
    assert len(shortened("s" * 100)) == 34


def test_charts_are_well_formed_whatever_the_names_are() -> None:
    hostile = "<script>\"onload='x'&"
    plots = [
        interval_plot([Interval(label=hostile, value=0.3, low=0.05, high=1.0)], chance=0.5, description=hostile),
        line_chart(
            [
                Series(name=hostile, points=[(1, 2.0), (2, 1.0)], style="training"),
                Series(name=hostile, points=[(2, 1.0)], style="validation"),
            ],
            description=hostile,
            x_name=hostile,
        ),
        reliability_chart([ReliabilityCurve(name=hostile, bins=[], style="training")], description=hostile),
        matrix_chart([[1]], [hostile], description=hostile),
    ]
    for plot in plots:
        svg = ElementTree.fromstring(plot)
        assert hostile in svg.attrib["aria-label"]
        assert hostile in "".join(svg.itertext())
        assert not [one for one in svg.iter() if one.tag == "script" or "onload" in one.attrib]


def test_everything_drawn_lies_within_its_chart() -> None:
    points = [(step, 1e-3 * step) for step in range(1, 1001)]
    plots = [
        interval_plot([Interval(label="x", value=0.3, low=0.05, high=1.0)], chance=0.5, description=""),
        line_chart([Series(name="x", points=points, style="training")], description="", x_name="step"),
        line_chart([Series(name="x", points=[(7, 0.5)], style="validation")], description="", x_name="step"),
        reliability_chart([curve([(0.0, 0.0), (0.5, 0.4), (1.0, 1.0)])], description=""),
        matrix_chart([[3, 1], [0, 0]], ["a", "b"], description=""),
    ]
    for plot in plots:
        svg = ElementTree.fromstring(plot)
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        for element in svg.iter():
            for name, most in (
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("cx", width),
                ("y1", height),
                ("y2", height),
                ("y", height),
                ("cy", height),
            ):
                assert 0 <= float(element.attrib.get(name, 0)) <= most


def curve(bins: Sequence[tuple[float, float]]) -> ReliabilityCurve:
    intervals = [(sure, Interval(label="", value=right, low=0.9 * right, high=right)) for sure, right in bins]
    return ReliabilityCurve(name="x", bins=intervals, style="validation")


def test_who_is_as_often_right_as_sure_lies_on_the_dashed_line() -> None:
    svg = ElementTree.fromstring(reliability_chart([curve([(0.25, 0.25), (0.75, 0.75), (0.5, 0.25)])], description=""))
    (line,) = [one for one in svg if one.attrib["class"] == "chance"]
    start_x, start_y, end_x, end_y = (float(line.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    places = [
        (float(one.attrib["cx"]), float(one.attrib["cy"])) for one in svg if one.attrib["class"] == "dot validation"
    ][:3]
    heights = [start_y + (x - start_x) / (end_x - start_x) * (end_y - start_y) for x, _ in places]
    assert [y - height for (_, y), height in zip(places[:2], heights[:2], strict=True)] == pytest.approx(
        [0, 0], abs=0.2
    )
    assert places[2][1] > heights[2] + 20  # below the line: too sure


def test_a_cell_of_a_matrix_is_the_darker_the_more_of_its_row_it_holds() -> None:
    svg = ElementTree.fromstring(matrix_chart([[3, 1], [0, 0]], ["a", "b"], description="confusion"))
    assert svg.attrib["aria-label"] == "confusion: a to a 3; a to b 1; b to a 0; b to b 0"
    shares = [float(one.attrib["fill-opacity"]) for one in svg if one.attrib["class"] == "cell"]
    assert shares[0] > shares[1] > shares[2] == shares[3] > 0
    texts = [one.text for one in svg if one.tag == "text"]
    assert {"75.0 %", "25.0 %", "3", "1", "0"} <= set(texts)


def test_the_shares_of_a_bar_lie_end_to_end() -> None:
    rects = ElementTree.fromstring(stacked_bar({"negative": 0.25, "neutral": 0.5, "positive": 0.25}))
    assert [rect.attrib["x"] for rect in rects] == ["0.00%", "25.00%", "75.00%"]
    assert [rect.attrib["class"] for rect in rects] == ["negative", "neutral", "positive"]


def test_the_most_confident_samples_come_first_and_only_one_of_a_post() -> None:
    soft_labels = np.array([[0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]])
    places = by_confidence(soft_labels, 0)
    assert places == [1, 3, 0]
    keys = ["a-0", "b-0", "c-0", "b-1"]
    assert list(first_of_each_post((keys[place], place) for place in places)) == [1, 0]
    assert by_confidence(soft_labels, 2) == []
    assert by_confidence(np.empty((0, 3)), 0) == []


def test_disagreement_does_not_depend_on_the_scale_of_the_benchmark() -> None:
    polarity = np.array([-0.5, -0.1, 0.1, 0.9])
    human = np.array([3.0, 1.0, 4.0, 5.0])
    assert largest_disagreements(polarity, human, 2).tolist() == [0, 1]
    assert largest_disagreements(polarity, 100 * human - 7, 2).tolist() == [0, 1]
