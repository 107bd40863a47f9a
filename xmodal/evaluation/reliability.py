"""How often predictions are right where they are so sure. Pure functions of arrays.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

import numpy as np

_Z = 1.96  # of 95 %


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The samples of a stretch of confidence."""

    count: int
    confidence: float
    """Their mean."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """95 % interval of the accuracy (Wilson 1927)."""


def reliability(probabilities: np.ndarray, classes: np.ndarray, num_bins: int) -> list[ReliabilityBin]:
    """The bins of `calibration_error` that have samples, in the order of confidence."""
    found = []
    for weight, confidence, accuracy in _bins(probabilities, classes, num_bins):
        count = round(weight)
        middle = (accuracy + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z * np.sqrt(accuracy * (1 - accuracy) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
        found.append(
            ReliabilityBin(
                count=count,
                confidence=confidence,
                accuracy=accuracy,
                accuracy_low=float(middle - half),
                accuracy_high=float(middle + half),
            )
        )
    return found


def calibration_error(
    probabilities: np.ndarray, classes: np.ndarray, num_bins: int, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error (ECE): |accuracy - mean confidence| of each bin, weighted by the bins' sizes.

    The bins of confidence are equally wide over [0, 1]; each takes in its upper edge, the first one its lower one too.
    `weights` `(n,)`: how often each sample counts, by default once. NaN where nothing counts.
    """
    total = len(classes) if weights is None else weights.sum()
    if not total:
        return float("nan")
    return sum(
        weight_of_bin / total * abs(accuracy - confidence)
        for weight_of_bin, confidence, accuracy in _bins(probabilities, classes, num_bins, weights)
    )


def _bins(
    probabilities: np.ndarray, classes: np.ndarray, num_bins: int, weights: np.ndarray | None = None
) -> list[tuple[float, float, float]]:
    """Weight, mean confidence and accuracy of each bin that has samples."""
    weights = np.ones(len(classes)) if weights is None else weights
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == classes
    edges = np.linspace(0, 1, num_bins + 1)
    numbers = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    weight_of, sums, right = (
        np.bincount(numbers, weights=weights * values, minlength=num_bins) for values in (1, confidence, is_right)
    )
    return [
        (float(weight), float(total / weight), float(weight_right / weight))
        for weight, total, weight_right in zip(weight_of, sums, right, strict=True)
        if weight
    ]
