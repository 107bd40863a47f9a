import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.labels import CLASSES, NEGATIVE, NEUTRAL, POSITIVE, histogram, one_hot, parse_label


def test_the_classes_are_in_the_order_of_the_design():
    assert CLASSES == ("negative", "neutral", "positive")
    assert (NEGATIVE, NEUTRAL, POSITIVE) == (0, 1, 2)


def test_a_histogram_counts_the_most_probable_classes():
    soft_labels = [(0.2, 0.3, 0.5), (0.6, 0.3, 0.1), (0.0, 0.1, 0.9)]
    assert histogram(soft_labels) == {"negative": 1, "neutral": 0, "positive": 2}


def test_a_tie_goes_to_the_lower_class():
    assert histogram([(0.4, 0.2, 0.4), (0.2, 0.4, 0.4)]) == {"negative": 1, "neutral": 1, "positive": 0}


def test_no_samples_give_a_histogram_of_zeros():
    assert histogram([]) == histogram(np.empty((0, 3))) == dict.fromkeys(CLASSES, 0)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), max_size=20))
def test_every_sample_is_counted_once(soft_labels):
    assert sum(histogram(soft_labels).values()) == len(soft_labels)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, (1, 0, 0)),
        (2, (0, 0, 1)),
        ("1", (0, 1, 0)),
        ("positive", (0, 0, 1)),
        ([0.1, 0.2, 0.7], (0.1, 0.2, 0.7)),
        ((0, 1, 0), (0, 1, 0)),
        ("[0.25, 0.25, 0.5]", (0.25, 0.25, 0.5)),
        ([0.3333, 0.3333, 0.3333], (0.3333, 0.3333, 0.3333)),
    ],
)
def test_a_label_is_a_class_or_three_probabilities(value, label):
    assert parse_label(value) == label


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, -1, 1.0, True, "", "Positive", "happy", "3", "true", "null", "[0.1, 0.9", {"positive": 1}),
        *([], [1, 0], [0.1, 0.2, 0.6], [0.5, 0.5, 0.5], [-0.1, 0.4, 0.7], [math.nan, 0, 1], [True, 0, 0]),
        *(["0.1", "0.2", "0.7"], [None, 0, 1], "[" * 10_000, "9" * 5000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_all_else_is_no_label(value):
    assert parse_label(value) is None


@given(class_id=st.sampled_from([NEGATIVE, NEUTRAL, POSITIVE]))
def test_a_class_is_one_hot_and_its_own_histogram(class_id):
    label = one_hot(class_id)
    assert parse_label(class_id) == parse_label(CLASSES[class_id]) == label
    assert histogram([label])[CLASSES[class_id]] == sum(label) == 1
