"""The three classes, in the one order that everything here uses."""

import json
import math
from collections.abc import Sequence

import numpy as np

CLASSES = ("negative", "neutral", "positive")
NEGATIVE, NEUTRAL, POSITIVE = range(3)

SoftLabel = tuple[float, float, float]

_SUM_TOLERANCE = 1e-3
"""By so much three probabilities may miss 1: those of other programs are rounded."""


def one_hot(class_id: int) -> SoftLabel:
    """All of the probability on one class."""
    negative, neutral, positive = (float(class_id == other) for other in (NEGATIVE, NEUTRAL, POSITIVE))
    return (negative, neutral, positive)


def parse_label(value: object) -> SoftLabel | None:
    """A label as data has it: a class's id or name as one-hot, three probabilities as they are; None for all else.

    Also as text, as a cell of a table has it: `2`, `positive`, `[0.1, 0.2, 0.7]`.
    """
    if isinstance(value, str):
        if value in CLASSES:
            return one_hot(CLASSES.index(value))
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, int) and not isinstance(value, bool):
        return one_hot(value) if value in (NEGATIVE, NEUTRAL, POSITIVE) else None
    if not isinstance(value, list | tuple) or len(value) != len(CLASSES):
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 for one in value):
        return None
    negative, neutral, positive = map(float, value)
    return (negative, neutral, positive) if math.isclose(sum(value), 1, abs_tol=_SUM_TOLERANCE) else None


def histogram(soft_labels: Sequence[Sequence[float]] | np.ndarray) -> dict[str, int]:
    """How many samples have each class as their most probable; ties go to the lower class id."""
    predicted = np.argmax(np.asarray(soft_labels, dtype=np.float64).reshape(-1, len(CLASSES)), axis=1)
    counts = np.bincount(predicted, minlength=len(CLASSES))
    return {name: int(count) for name, count in zip(CLASSES, counts, strict=True)}
