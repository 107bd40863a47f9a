import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from xmodal.label_quality.agreement import Agreement, agreement_of
from xmodal.labels import one_hot

CLASS_PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


def of_pairs(pairs: list[tuple[int, int]]) -> Agreement:
    first, second = (np.array([one_hot(pair[side]) for pair in pairs]) for side in (0, 1))
    return agreement_of(first, second)


def test_the_papers_table_of_old_and_new_labels_has_the_papers_share_of_flips():
    paper = Agreement(confusion=np.array([[89_476, 46_713, 20_673], [3_478, 128_552, 24_832], [2_318, 7_030, 147_514]]))
    assert paper.num_samples == 470_586
    assert round(paper.flips * paper.num_samples) == 105_044
    assert paper.flips == pytest.approx(0.22, abs=0.005)
    assert paper.flips_of_class[0] == pytest.approx(0.43, abs=0.005)


@given(pairs=CLASS_PAIRS)
def test_the_confusion_counts_every_pair_where_it_belongs(pairs):
    agreement = of_pairs(pairs)
    for first in range(3):
        for second in range(3):
            assert agreement.confusion[first, second] == pairs.count((first, second))
        of_class = [second for one, second in pairs if one == first]
        flips = sum(second != first for second in of_class) / len(of_class) if of_class else np.nan
        assert agreement.flips_of_class[first] == pytest.approx(flips, nan_ok=True)
    assert agreement.flips == pytest.approx(sum(first != second for first, second in pairs) / len(pairs))


@given(pairs=CLASS_PAIRS)
def test_kappa_is_that_of_scikit_learn(pairs):
    first, second = zip(*pairs, strict=True)
    if len({*first, *second}) > 1:
        expected = cohen_kappa_score(first, second, labels=[0, 1, 2])
        assert of_pairs(pairs).kappa == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(of_pairs(pairs).kappa)


def test_soft_labels_count_for_their_most_probable_class():
    agreement = agreement_of(np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), np.array([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]))
    assert agreement.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
