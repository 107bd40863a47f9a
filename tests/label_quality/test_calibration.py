import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from xmodal.evaluation.reliability import calibration_error, reliability
from xmodal.label_quality.calibration import FLOOR, fit_temperature, negative_log_likelihood, tempered


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(n, 3)` and true classes `(n,)`; some certain, some at the edges of bins."""
    size = draw(st.integers(1, 40))
    logits = draw(arrays(np.float64, (size, 3), elements=st.floats(-8, 8)))
    probabilities = softmax(logits, axis=1)
    rounded = draw(st.sampled_from([None, 1, 2]))
    if rounded is not None:
        probabilities = np.round(probabilities, rounded)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, draw(arrays(np.int64, size, elements=st.integers(0, 2)))


def error_by_hand(probabilities: np.ndarray, classes: np.ndarray, num_bins: int) -> float:
    """The formula of the paper, sample by sample."""
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        members = [
            (max(row), int(row.argmax()) == true)
            for row, true in zip(probabilities, classes, strict=True)
            if (low < max(row) or number == 0) and max(row) <= high
        ]
        if members:
            confidence = sum(sure for sure, _ in members) / len(members)
            accuracy = sum(right for _, right in members) / len(members)
            total += len(members) / len(classes) * abs(accuracy - confidence)
    return total


@given(given_and_true=predictions(), num_bins=st.sampled_from([1, 2, 4, 8, 16]))
def test_the_calibration_error_is_the_papers_formula(given_and_true, num_bins):
    probabilities, classes = given_and_true
    expected = error_by_hand(probabilities, classes, num_bins)
    assert calibration_error(probabilities, classes, num_bins) == pytest.approx(expected, abs=1e-12)


@given(given_and_true=predictions())
def test_the_likelihood_is_the_mean_log_of_what_the_truth_was_given(given_and_true):
    probabilities, classes = given_and_true
    floored = np.maximum(probabilities, FLOOR)
    logs = [math.log(row[true] / sum(row)) for row, true in zip(floored, classes, strict=True)]
    assert negative_log_likelihood(probabilities, classes) == pytest.approx(-sum(logs) / len(logs))


@given(logits=arrays(np.float64, (5, 3), elements=st.floats(-6, 6)), temperature=st.floats(0.1, 10))
def test_tempering_divides_the_logits(logits, temperature):
    found = tempered(softmax(logits, axis=1), temperature)
    assert found == pytest.approx(softmax(logits / temperature, axis=1), abs=1e-6)
    assert tempered(softmax(logits, axis=1), 1) == pytest.approx(softmax(logits, axis=1), abs=1e-9)


@given(given_and_true=predictions())
def test_no_other_temperature_is_likelier_than_the_one_that_is_fitted(given_and_true):
    probabilities, classes = given_and_true
    fitted = fit_temperature(probabilities, classes)
    assert 0.05 <= fitted <= 20
    least = negative_log_likelihood(probabilities, classes, fitted)
    assert least == pytest.approx(-np.log(tempered(probabilities, fitted)[np.arange(len(classes)), classes]).mean())
    for other in np.geomspace(0.05, 20, 60):
        assert least <= negative_log_likelihood(probabilities, classes, other) + 1e-6


def test_a_few_posts_that_the_teacher_is_certainly_wrong_of_make_no_second_valley():
    probabilities = np.array([[0.5, 0.25, 0.25]] * 93 + [[1.0, 0, 0]] * 7)
    classes = np.array([0] * 93 + [1] * 7)
    fitted = fit_temperature(probabilities, classes)
    temperatures = np.geomspace(0.05, 20, 400)
    losses = np.array([negative_log_likelihood(probabilities, classes, one) for one in temperatures])
    assert negative_log_likelihood(probabilities, classes, fitted) <= losses.min() + 1e-6
    # Down to the least, and up from it.
    assert (np.diff(np.sign(np.diff(losses))) != 0).sum() <= 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_a_teacher_too_sure_is_found_again(temperature):
    generator = np.random.default_rng(0)
    truth = softmax(generator.normal(0, 1.5, (20_000, 3)), axis=1)
    classes = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    said = tempered(truth, 1 / temperature)
    assert fit_temperature(said, classes) == pytest.approx(temperature, rel=0.05)
    assert calibration_error(tempered(said, temperature), classes, 15) < 0.015


@given(given_and_true=predictions(), num_bins=st.integers(1, 20))
def test_the_bins_hold_every_sample_once_and_their_intervals_hold_the_accuracy(given_and_true, num_bins):
    bins = reliability(*given_and_true, num_bins)
    assert sum(one.count for one in bins) == len(given_and_true[1])
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    for one in bins:
        assert -1e-9 <= one.accuracy_low <= one.accuracy + 1e-9
        assert one.accuracy - 1e-9 <= one.accuracy_high <= 1 + 1e-9


def test_the_interval_of_a_bin_is_wilsons():
    probabilities = np.array([[0.9, 0.05, 0.05]] * 10)
    (one,) = reliability(probabilities, np.array([0] * 8 + [1] * 2), 10)
    # Wilson 1927, 8 of 10.
    assert (one.accuracy, one.accuracy_low, one.accuracy_high) == pytest.approx((0.8, 0.490, 0.943), abs=5e-4)


@given(given_and_true=predictions(), num_bins=st.sampled_from([1, 4, 15]), seed=st.integers(0, 10))
def test_an_integer_weight_in_the_calibration_error_is_a_repeated_sample(given_and_true, num_bins, seed):
    probabilities, classes = given_and_true
    weights = np.random.default_rng(seed).integers(0, 3, len(classes))
    places = np.repeat(np.arange(len(classes)), weights)
    repeated = calibration_error(probabilities[places], classes[places], num_bins)
    found = calibration_error(probabilities, classes, num_bins, weights.astype(float))
    assert found == pytest.approx(repeated, abs=1e-9, nan_ok=True)
