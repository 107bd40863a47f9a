"""What people saw in the pictures of mvsa.py, in folds, and the figures of predictions that are judged by it."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from shards.dataset import shard_names
from shards.index import read_index
from shards.storage import open_storage
from xmodal.curation.near_duplicates import near_groups, pack_hashes
from xmodal.evaluation.compare import compare
from xmodal.evaluation.folds import grouped_folds
from xmodal.evaluation.metrics import auc, metrics_of, polarity_of, with_intervals
from xmodal.labels import NEUTRAL

NUM_FOLDS = 5
NUM_DRAWS = 1000
FIGURES = ("auc", "balanced_accuracy", "macro_f1", "three_class_macro_f1")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Pictures that people judged, `n` of them."""

    paths: list[str]
    scores: np.ndarray
    """int64 `(n,)`: -1 negative, 0 neutral, 1 positive."""
    teacher: np.ndarray
    """float64 `(n, 3)`: what the teacher said of the texts beside them."""
    groups: np.ndarray
    """int64 `(n,)`: near duplicates have one number."""
    folds: np.ndarray
    """int64 `(n,)`."""

    def rows_of(self, folds: Iterable[int]) -> np.ndarray:
        """Which pictures are in some folds: bool `(n,)`."""
        return np.isin(self.folds, list(folds))


def judged_pictures(dataset: Path, labels: Path) -> Judged:
    """The samples of a dataset that people judged, in the order of the shards, and the folds that they are cut into."""
    with labels.open(newline="") as file:
        class_of = {row["path"]: int(row["image_class"]) for row in csv.DictReader(file)}
    storage = open_storage(str(dataset))
    samples = [
        sample
        for name in shard_names(storage)
        for sample in read_index(storage, name).select(["url", "pdq", "soft_label"]).to_pylist()
    ]
    # Of all posts: two pictures may be near to one another by a third that nobody judged.
    all_groups = near_groups(pack_hashes(sample["pdq"] for sample in samples))
    paths = [urlsplit(sample["url"]).path.lstrip("/") for sample in samples]
    judged = [place for place, path in enumerate(paths) if path in class_of]
    classes, groups = np.array([class_of[paths[place]] for place in judged]), all_groups[judged]
    return Judged(
        paths=[paths[place] for place in judged],
        scores=classes - NEUTRAL,
        teacher=np.array([samples[place]["soft_label"] for place in judged]),
        groups=groups,
        folds=grouped_folds(classes, groups, NUM_FOLDS, seed=0),
    )


def figures_of(judged: Judged, predicted: np.ndarray, folds: Sequence[int]) -> dict[str, float]:
    """Figures of predictions `(n, 3)` of all pictures of some folds together, with intervals.

    `n` pictures are positive or negative; `auc_mean_of_folds` is the mean of each fold's own.
    """
    rows = judged.rows_of(folds) & ~np.isnan(predicted).any(axis=1)
    every = metrics_of(predicted[rows], judged.scores[rows], is_graded=False, has_neutral=True)
    metrics = {name: every[name] for name in FIGURES}
    found = with_intervals(metrics, judged.groups[rows], num_draws=NUM_DRAWS, seed=0)
    polarity = polarity_of(predicted)
    found["auc_mean_of_folds"] = float(
        np.mean([_auc(polarity, judged.scores, judged.rows_of([fold])) for fold in folds])
    )
    # Against the teacher, on the same pictures: what one may choose by where there are no people's labels.
    found["auc_by_teacher"] = _auc(polarity, judged.teacher.argmax(axis=1) - NEUTRAL, rows)
    return {"n": float((judged.scores[rows] != 0).sum()), **found}


def _auc(polarity: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    return auc(polarity[rows], scores[rows], np.ones(int(rows.sum())))


def result_lines(figures: Mapping[str, Mapping[str, float]], column: str) -> list[str]:
    """A table in Markdown: a row a contender."""
    columns = [
        column,
        "AUC",
        "balanced accuracy",
        "macro F1",
        "macro F1 of three",
        "mean of folds' AUC",
        "AUC by teacher",
    ]
    rows = [
        [
            name,
            *(f"{values[one]:.3f} [{values[f'{one}_low']:.3f}, {values[f'{one}_high']:.3f}]" for one in FIGURES),
            *(f"{values[one]:.3f}" for one in ("auc_mean_of_folds", "auc_by_teacher")),
        ]
        for name, values in figures.items()
    ]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def difference(judged: Judged, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """By how much the first predictions' AUC is above the second's, on the pictures that both have."""
    found = compare(
        (first, second),
        judged.scores,
        judged.groups,
        names=("first", "second"),
        benchmark="mvsa",
        num_draws=NUM_DRAWS,
        seed=0,
    )
    return {
        "auc_difference": found.auc_difference,
        "auc_difference_low": found.auc_difference_low,
        "auc_difference_high": found.auc_difference_high,
    }
