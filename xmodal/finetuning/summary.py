"""What came of all divisions: metrics of each, their mean and deviation, and those of all held-out pictures."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.benchmarks import Benchmark
from xmodal.evaluation.evaluate import score
from xmodal.evaluation.metrics import metrics_of
from xmodal.evaluation.table import HEADLINE, aligned, interval_of, interval_text
from xmodal.finetuning.divisions import Divisions, num_crossing
from xmodal.labels import CLASSES


@dataclass(frozen=True, kw_only=True)
class DivisionResult:
    """One student on the pictures that it was not trained on."""

    name: str
    student: str
    """Its folder, as seen from the run's."""
    predictions: str
    """Likewise."""
    train: int
    """Pictures."""
    val: int
    test: int
    crossing: int
    """Groups of duplicates that are across its parts: none across folds, some across many a given division."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All divisions."""

    model: str
    benchmark: str
    divisions: list[DivisionResult]
    mean: dict[str, float]
    """Of each metric over the divisions."""
    std: dict[str, float]
    """Population standard deviation: squares are divided by the number of divisions, not by one less."""
    held_out: dict[str, float]
    """Metrics, with intervals, of the predictions of all divisions together."""
    undecodable: int
    """Pictures that are in no part, since they cannot be decoded."""
    unjudged: int
    """Pictures that are in no class: those whose score is 0."""

    def to_json(self) -> dict[str, Any]:
        """As `result.json` has it."""
        return asdict(self)


def read_predictions(file: Path) -> np.ndarray:
    """The probabilities, float64 `(n, 3)`, of a file that `predictions_csv` wrote."""
    with open(file, newline="", encoding="utf-8") as opened:
        return np.array([[float(row[name]) for name in CLASSES] for row in csv.DictReader(opened)])


def summarise(
    divisions: Divisions,
    benchmark: Benchmark,
    probabilities: Sequence[np.ndarray],
    *,
    model: str,
    num_unjudged: int,
    num_draws: int,
    seed: int,
) -> Summary:
    """`probabilities` are, for each division, those `(n, 3)` of its test pictures, in the benchmark's order."""
    tested = [np.flatnonzero(row == "test") for row in divisions.parts]
    results = [
        DivisionResult(
            name=name,
            student=f"{name}/student",
            predictions=f"{name}/predictions.csv",
            **{part: int((row == part).sum()) for part in ("train", "val", "test")},
            crossing=num_crossing(divisions.groups, row),
            metrics=_metrics(benchmark.subset(places), of_division),
        )
        for name, row, places, of_division in zip(divisions.names, divisions.parts, tested, probabilities, strict=True)
    ]
    values = {name: np.array([one.metrics[name] for one in results]) for name in results[0].metrics}
    # A picture may be held out by several of the divisions that were given; then its group counts as often.
    together = benchmark.subset(np.concatenate(tested))
    return Summary(
        model=model,
        benchmark=benchmark.config.name,
        divisions=results,
        mean={name: float(of_all.mean()) for name, of_all in values.items()},
        std={name: float(of_all.std()) for name, of_all in values.items()},
        held_out=score(together, np.concatenate(probabilities), num_draws=num_draws, seed=seed),
        undecodable=int((~divisions.is_decodable).sum()),
        unjudged=num_unjudged,
    )


def _metrics(tested: Benchmark, probabilities: np.ndarray) -> dict[str, float]:
    """Without intervals: a fold has few pictures."""
    known = ~np.isnan(probabilities).any(axis=1)
    found = metrics_of(
        probabilities[known],
        tested.scores[known],
        is_graded=tested.config.is_graded,
        has_neutral=tested.config.has_neutral,
    )
    return {name: metric(np.ones(int(known.sum()))) for name, metric in found.items()}


def summary_text(summary: Summary) -> str:
    """For a terminal: a line for each division, mean ± standard deviation, and all held-out pictures."""
    lines = [[summary.benchmark, "train", "test", *HEADLINE]]
    for one in summary.divisions:
        values = (_value(one.metrics, metric) for metric in HEADLINE)
        lines.append([one.name, str(one.train), str(one.test), *values])
    spread = (f"{_value(summary.mean, metric)} ± {_value(summary.std, metric)}" for metric in HEADLINE)
    lines.append(["mean ± std", "", "", *spread])
    together = (interval_text(*interval_of(summary.held_out, metric)) for metric in HEADLINE)
    lines.append(["all held-out", "", str(sum(one.test for one in summary.divisions)), *together])
    notes = ["std: population standard deviation over the divisions; in brackets: 95 % intervals"]
    for count, why in ((summary.undecodable, "cannot be decoded"), (summary.unjudged, "have a score of 0")):
        if count:
            notes.append(f"left out: pictures that {why}: {count}")
    notes += [
        f"{one.name}: groups of duplicates across its parts, as given: {one.crossing}"
        for one in summary.divisions
        if one.crossing
    ]
    return "\n".join([*aligned(lines, num_names=1), *notes])


def _value(metrics: Mapping[str, float], metric: str) -> str:
    value = metrics[metric]
    return f"{value:.3f}" if math.isfinite(value) else "—"
