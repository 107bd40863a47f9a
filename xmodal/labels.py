"""The three classes, in the one order that everything here uses."""

from collections.abc import Sequence

import numpy as np

CLASSES = ("negative", "neutral", "positive")
NEGATIVE, NEUTRAL, POSITIVE = range(3)

SoftLabel = tuple[float, float, float]


def histogram(soft_labels: Sequence[Sequence[float]] | np.ndarray) -> dict[str, int]:
    """How many samples have each class as their most probable; ties go to the lower class id."""
    predicted = np.argmax(np.asarray(soft_labels, dtype=np.float64).reshape(-1, len(CLASSES)), axis=1)
    counts = np.bincount(predicted, minlength=len(CLASSES))
    return {name: int(count) for name, count in zip(CLASSES, counts, strict=True)}
