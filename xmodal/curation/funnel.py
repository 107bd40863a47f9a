"""The funnel: what is left after each step, of which class, and which step dropped which sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xmodal.labels import CLASSES


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """What was left after a step."""

    step: str
    samples: int
    by_class: dict[str, int]


class Funnel:
    """Applies steps one after another to samples of known `classes` (uint8 `(n,)`), and counts."""

    def __init__(self, classes: np.ndarray) -> None:
        self._classes = classes
        self.dropped_by = np.zeros(len(classes), dtype=np.uint8)
        """Number of the step that dropped each sample, its place in `steps`; 0 for those that are left."""
        self.steps = [FunnelStep(step="labelled", samples=len(classes), by_class=class_counts(classes))]

    @property
    def left(self) -> np.ndarray:
        """Places of the samples that are left, int64."""
        return np.flatnonzero(self.dropped_by == 0)

    def apply(self, name: str, step: Callable[[np.ndarray], np.ndarray]) -> None:
        """Drop what does not stay: `step` is given the places of the samples left, and returns a bool for each."""
        left = self.left
        self.dropped_by[left[~step(left)]] = len(self.steps)
        left = self.left
        self.steps.append(FunnelStep(step=name, samples=len(left), by_class=class_counts(self._classes[left])))


def class_counts(classes: np.ndarray) -> dict[str, int]:
    """How many samples are of each class."""
    counts = np.bincount(classes, minlength=len(CLASSES))
    return {name: int(count) for name, count in zip(CLASSES, counts, strict=True)}


def funnel_table(funnel: Sequence[FunnelStep], splits: Mapping[str, Mapping[str, int]]) -> str:
    """Counts after every step, then of every split, and each class's share of them, as lines."""
    rows = [(step.step, step.by_class) for step in funnel] + list(splits.items())
    width = max(len(name) for name, _ in rows)
    digits = max(len(f"{sum(by_class.values()):,}") for _, by_class in rows)
    cell = digits + 9
    lines = [f"{'':<{width}}  {'samples':>{max(digits, 7)}}" + "".join(f"  {name:>{cell}}" for name in CLASSES)]
    for name, by_class in rows:
        total = sum(by_class.values())
        cells = [f"{count:,} ({count / max(total, 1):6.1%})" for count in by_class.values()]
        lines.append(f"{name:<{width}}  {total:>{max(digits, 7)},}" + "".join(f"  {one:>{cell}}" for one in cells))
    return "\n".join(lines)
