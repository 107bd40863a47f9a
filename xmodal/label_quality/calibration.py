"""How far a teacher's confidence can be believed, and the temperature that mends it. Pure functions of arrays.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

FLOOR = 1e-6
"""Least probability: stored labels have six digits, and one that is none would cost an infinite loss."""
_TEMPERATURES = (0.05, 20.0)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `(n, classes)` as their logits divided by `temperature` give them: above 1 is less sure."""
    return np.exp(_log_probabilities(probabilities, temperature))


def negative_log_likelihood(probabilities: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log of the probability that tempering gives to the true class, in nats."""
    return float(-_log_probabilities(probabilities, temperature)[np.arange(len(classes)), classes].mean())


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


def _log_probabilities(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature
    return log_softmax(logits, axis=1)
