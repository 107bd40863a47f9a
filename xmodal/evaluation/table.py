"""Metrics as a table that a terminal can show."""

import math
from collections.abc import Mapping

from xmodal.evaluation.metrics import METRICS


def results_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One row a benchmark (or whatever the keys name), one column a metric, each with its interval."""
    width = max(len("benchmark"), *(len(name) for name in results))
    lines = [f"{'benchmark':<{width}}  {'n':>6}" + "".join(f"  {name:>22}" for name in METRICS)]
    for name, metrics in results.items():
        cells = "".join(f"  {interval_text(*interval_of(metrics, metric)):>22}" for metric in METRICS)
        lines.append(f"{name:<{width}}  {metrics['n']:>6}{cells}")
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
