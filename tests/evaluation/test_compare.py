import math

import numpy as np
import pytest

from xmodal.evaluation.compare import Comparison, compare
from xmodal.evaluation.table import comparisons_text


def predictions(right: np.ndarray, human: np.ndarray) -> np.ndarray:
    """Probabilities `(n, 3)` of a student that is right where it is told to be."""
    positive = np.where((human > 0) == right, 0.7, 0.1)
    return np.stack([0.8 - positive, np.full(len(human), 0.2), positive], axis=1)


def compared(first: np.ndarray, second: np.ndarray, human: np.ndarray, num_draws: int = 200) -> Comparison:
    return compare(
        (first, second),
        human,
        np.arange(len(human)),
        names=("a", "b"),
        benchmark="made",
        num_draws=num_draws,
        seed=0,
    )


HUMAN = np.array([1.0, -1.0] * 50)


def test_mcnemars_p_is_that_of_a_fair_coin():
    first, second = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    first[:2], second[10:20] = False, False
    found = compared(predictions(first, HUMAN), predictions(second, HUMAN), HUMAN)
    assert (found.only_first_right, found.only_second_right, found.n) == (10, 2, 100)
    by_hand = 2 * sum(math.comb(12, wins) for wins in range(3)) / 2**12
    assert found.mcnemar_p == pytest.approx(by_hand)
    assert found.accuracy_difference == pytest.approx(0.08)
    assert found.accuracy_difference_low < 0.08 < found.accuracy_difference_high


def test_students_that_say_the_same_do_not_differ():
    right = np.arange(100) % 3 > 0
    found = compared(predictions(right, HUMAN), predictions(right, HUMAN), HUMAN)
    assert (found.mcnemar_p, found.auc_p) == (1, 1)
    assert found.auc_difference == found.auc_difference_low == found.auc_difference_high == 0


def test_a_better_student_has_a_small_p_which_is_the_same_the_other_way_round():
    generator = np.random.default_rng(0)
    good, poor = (generator.random(100) < share for share in (0.95, 0.6))
    found = compared(predictions(good, HUMAN), predictions(poor, HUMAN), HUMAN)
    turned = compared(predictions(poor, HUMAN), predictions(good, HUMAN), HUMAN)
    assert found.auc_p < 0.05
    # No draw has the other sign, which is no p of 0.
    assert found.auc_p == pytest.approx(2 / 201)
    assert turned.auc_p == found.auc_p
    assert turned.mcnemar_p == pytest.approx(found.mcnemar_p)
    assert turned.auc_difference == pytest.approx(-found.auc_difference)


def test_the_p_of_equal_students_is_seldom_small():
    generator = np.random.default_rng(1)
    below = 0
    for _ in range(60):
        first, second = (predictions(generator.random(100) < 0.8, HUMAN) for _ in range(2))
        for of_one in (first, second):
            of_one[:, 2] += generator.uniform(-0.05, 0.05, 100)
        below += compared(first, second, HUMAN, num_draws=100).auc_p < 0.05
    # 3 of 60 are expected by chance.
    assert below <= 9


def test_pictures_that_one_of_them_cannot_decode_and_those_judged_0_are_left_out():
    human = np.array([1.0, -1.0, 0.0, 1.0, -1.0])
    first, second = predictions(np.ones(5, dtype=bool), human), predictions(np.ones(5, dtype=bool), human)
    second[0] = np.nan
    found = compared(first, second, human, num_draws=20)
    assert (found.n, found.accuracy_difference) == (3, 0)


def test_what_the_draws_cannot_tell_is_not_told():
    """One group, such as a single picture in many versions: neither an interval nor a p of the bootstrap."""
    human = np.array([1.0, -1.0, 1.0])
    right, wrong = predictions(np.ones(3, dtype=bool), human), predictions(np.array([True, True, False]), human)
    found = compare((right, wrong), human, np.zeros(3), names=("a", "b"), benchmark="made", num_draws=20, seed=0)
    assert math.isnan(found.auc_p)
    text = comparisons_text([found])
    assert "accuracy +0.333, p = 1.000 (McNemar); AUC +0.250" in text
    assert "nan" not in text


def test_a_comparison_is_told_in_one_line():
    first, second = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    second[10:40] = False
    text = comparisons_text([compared(predictions(first, HUMAN), predictions(second, HUMAN), HUMAN)])
    (line,) = [line for line in text.splitlines() if line.startswith("made: ")]
    assert "a / b: accuracy +0.300 [" in line
    assert "p < 0.001 (McNemar)" in line
    found = compared(predictions(first, HUMAN), predictions(second, HUMAN), HUMAN, num_draws=5)
    *_, before, first_item, second_item = comparisons_text([found, found], bullet="- ").splitlines()
    assert (before, first_item[:8], second_item[:8]) == ("", "- made: ", "- made: ")
