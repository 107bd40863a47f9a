"""How far a teacher's confidence can be believed, and the temperature that mends it. Pure functions of arrays.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

FLOOR = 1e-6
"""Least probability: stored labels have six digits, and one that is none would cost an infinite loss."""
_TEMPERATURES = (0.05, 20.0)
_Z = 1.96  # of 95 %


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `(n, classes)` as their logits divided by `temperature` give them: above 1 is less sure."""
    return np.exp(_log_probabilities(probabilities, temperature))


def negative_log_likelihood(probabilities: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log of the probability that tempering gives to the true class, in nats."""
    return float(-_log_probabilities(probabilities, temperature)[np.arange(len(classes)), classes].mean())


def calibration_error(probabilities: np.ndarray, classes: np.ndarray, num_bins: int) -> float:
    """Expected calibration error (ECE): |accuracy - mean confidence| of each bin, weighted by the bins' sizes.

    The bins of confidence are equally wide over [0, 1]; each takes in its upper edge, the first one its lower one too.
    """
    return sum(
        len_of_bin / len(classes) * abs(accuracy - confidence)
        for len_of_bin, confidence, accuracy in _bins(probabilities, classes, num_bins)
    )


def fit_temperature(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """The temperature in [0.05, 20] of the least negative log likelihood.

    That is convex in 1/temperature, so that there is one valley, whatever the scale that it is looked for on.
    """
    # Only stored probabilities are floored, never tempered ones: a floor under those would make a second valley.
    found = minimize_scalar(
        lambda log: negative_log_likelihood(probabilities, classes, np.exp(log)),
        bounds=np.log(_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


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
    for count, confidence, accuracy in _bins(probabilities, classes, num_bins):
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


def _log_probabilities(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature
    return log_softmax(logits, axis=1)


def _bins(probabilities: np.ndarray, classes: np.ndarray, num_bins: int) -> list[tuple[int, float, float]]:
    """Size, mean confidence and accuracy of each bin that has samples."""
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == classes
    edges = np.linspace(0, 1, num_bins + 1)
    numbers = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(numbers, minlength=num_bins)
    sums = np.bincount(numbers, weights=confidence, minlength=num_bins)
    right = np.bincount(numbers, weights=is_right, minlength=num_bins)
    return [
        (int(count), float(total / count), float(num_right / count))
        for count, total, num_right in zip(counts, sums, right, strict=True)
        if count
    ]
