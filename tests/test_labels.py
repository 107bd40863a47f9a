import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xmodal.labels import CLASSES, NEGATIVE, NEUTRAL, POSITIVE, histogram


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
