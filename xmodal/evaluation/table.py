"""Metrics as a table: for a terminal, as Markdown, or as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xmodal.evaluation.compare import Comparison

HEADLINE = ("accuracy", "balanced_accuracy", "f1_negative", "f1_positive", "auc", "calibration_error")
"""Of the many metrics, those that a table shows; `rank_correlation` too, where people gave scores."""


class Row(NamedTuple):
    """What one student gets on one benchmark."""

    model: str
    benchmark: str
    metrics: Mapping[str, float]


def results_text(rows: Sequence[Row]) -> str:
    """For a terminal. A benchmark of which pictures are missing is marked, and the marks are explained."""
    lines = _cells(rows)
    return "\n".join([*aligned(lines, num_names=lines[0].index("n")), *_partial_notes(rows)])


def aligned(lines: Sequence[Sequence[str]], *, num_names: int) -> list[str]:
    """Cells as columns: the first so many to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if column < num_names else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def results_markdown(rows: Sequence[Row]) -> str:
    """As a Markdown table."""
    lines = _cells(rows)
    notes = [note.replace("* partial", "\\* partial") for note in _partial_notes(rows)]  # a star begins a list
    table = markdown_lines(lines, num_names=lines[0].index("n"))
    return "\n".join([*table, *(["", *notes] if notes else [])])


def markdown_lines(lines: Sequence[Sequence[str]], *, num_names: int) -> list[str]:
    """Cells as a Markdown table: the first so many columns to the left, the others, numbers, to the right."""
    header, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    rule = "|".join(" --- " if column < num_names else " ---: " for column in range(len(lines[0])))
    return [header, f"|{rule}|", *body]


def results_csv(rows: Sequence[Row]) -> str:
    """Every metric and bound, a row for each student and benchmark; nothing where a benchmark has no such metric."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "benchmark", *names])
    for row in rows:
        values = (row.metrics.get(name, math.nan) for name in names)
        writer.writerow([row.model, row.benchmark, *(value if math.isfinite(value) else "" for value in values)])
    return file.getvalue().rstrip("\n")


def comparisons_text(comparisons: Sequence[Comparison], *, bullet: str = "") -> str:
    """A line for each two students on each benchmark; in Markdown, each needs a bullet, else all are one paragraph."""
    lines = ["", "Differences, first less second, with 95 % intervals; p is of one comparison, not of the best of many"]
    lines += [""] if bullet else []
    for one in comparisons:
        of_accuracy = _difference(
            one.accuracy_difference, one.accuracy_difference_low, one.accuracy_difference_high, one.mcnemar_p
        )
        of_auc = _difference(one.auc_difference, one.auc_difference_low, one.auc_difference_high, one.auc_p)
        lines.append(
            f"{bullet}{one.benchmark}: {one.first} / {one.second}: accuracy {of_accuracy} (McNemar); AUC {of_auc}"
        )
    return "\n".join(lines)


def interval_of(metrics: Mapping[str, float], metric: str) -> tuple[float, float, float]:
    """A metric with the bounds of its interval; NaN for what is not there."""
    value, low, high = (metrics.get(name, math.nan) for name in (metric, f"{metric}_low", f"{metric}_high"))
    return value, low, high


def interval_text(value: float, low: float, high: float) -> str:
    """`0.701 [0.655, 0.742]`; without the interval, or —, where there is none."""
    if not math.isfinite(value):
        return "—"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else f"{value:.3f}"


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The header and a line for each row; the models' column only where there are several."""
    several = len({row.model for row in rows}) > 1
    graded = any("rank_correlation" in row.metrics for row in rows)
    metrics = [*HEADLINE, *(["rank_correlation"] if graded else [])]
    lines = [[*(["model"] if several else []), "benchmark", "n", *metrics]]
    for row in rows:
        mark = "*" if row.metrics.get("partial") else ""
        names = [*([row.model] if several else []), row.benchmark, f"{row.metrics['n']:.0f}{mark}"]
        lines.append([*names, *(interval_text(*interval_of(row.metrics, metric)) for metric in metrics)])
    return lines


def _partial_notes(rows: Sequence[Row]) -> list[str]:
    lacking = {row.benchmark: what_is_lacking(row.metrics) for row in rows if row.metrics.get("partial")}
    return [f"* partial: of {name}, {what}" for name, what in lacking.items()]


def what_is_lacking(metrics: Mapping[str, float]) -> str:
    """How many pictures of a benchmark took no part, and why: `3 pictures are missing, 1 cannot be decoded`."""
    missing, undecodable = int(metrics.get("missing", 0)), int(metrics.get("left_out", 0))
    parts = [f"{missing} {'picture is' if missing == 1 else 'pictures are'} missing"] if missing else []
    return ", ".join([*parts, *([f"{undecodable} cannot be decoded"] if undecodable else [])])


def _difference(value: float, low: float, high: float, p: float) -> str:
    if not math.isfinite(value):
        return "—"
    interval = f" [{low:+z.3f}, {high:+z.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    p_text = f", p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'}" if math.isfinite(p) else ""
    return f"{value:+z.3f}{interval}{p_text}"
