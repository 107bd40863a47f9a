from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from curation_samples import flipped, random_hash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xmodal.curation.contamination import BenchmarkPictures, is_in_benchmarks
from xmodal.curation.name_hashes import lots, name_hashes
from xmodal.curation.near_duplicates import pack_hashes
from xmodal.curation.order import ranks
from xmodal.curation.steps import (
    capped,
    confident,
    equal_rows,
    first_of_each,
    smallest_class,
    split_of,
    without_leaks,
)

NONE = pack_hashes([])


@given(names=st.lists(st.sampled_from("abcd"), max_size=30))
def test_rows_have_one_number_if_and_only_if_they_are_equal(names):
    numbers = equal_rows(pack_hashes([random_hash(name) for name in names]))
    assert all(
        (one == other) == (a == b)
        for a, one in zip(names, numbers, strict=True)
        for b, other in zip(names, numbers, strict=True)
    )
    assert set(numbers.tolist()) == set(range(len(set(names))))


def test_rows_that_differ_in_one_bit_differ():
    first = random_hash("a")
    rows = pack_hashes([first, *(flipped(first, 1, bit) for bit in range(256)), first])
    numbers = equal_rows(rows)
    assert len(set(numbers.tolist())) == 257
    assert numbers[0] == numbers[-1]


@given(members=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_of_each_group_the_first_by_preference_stays(members):
    groups = np.array([group for group, _, _ in members], dtype=np.int64)
    sizes, order = (np.array([member[which] for member in members]) for which in (1, 2))
    stays = first_of_each(groups, -sizes, order, np.arange(len(members)))
    wanted = {}
    for place, (group, size, rank) in enumerate(members):
        wanted[group] = min(wanted.get(group, (9, 9, 99)), (-size, rank, place))
    assert sorted(np.flatnonzero(stays).tolist()) == sorted(place for _, _, place in wanted.values())


def test_a_probability_equal_to_the_threshold_is_not_confident():
    confidence, classes = np.array([0.7, np.nextafter(0.7, 1), 0.6]), np.array([2, 2, 2])
    stays = confident(confidence, classes, np.zeros(3, dtype=int), np.array([[0, 0, 0.7]]))
    assert stays.tolist() == [False, True, False]


def test_each_class_of_each_dataset_has_its_own_threshold():
    thresholds = np.array([[0.9, 0.7, 0.8], [0.7, 0.9, 0.7]])
    confidence, classes = np.array([0.8, 0.8, 0.8]), np.array([0, 1, 2])
    assert confident(confidence, classes, np.array([0, 0, 0]), thresholds).tolist() == [False, True, False]
    assert confident(confidence, classes, np.array([1, 1, 1]), thresholds).tolist() == [True, False, True]


def test_no_threshold_keeps_everything():
    assert confident(np.array([1 / 3, 0.5]), np.array([0, 1]), np.array([0, 0]), np.zeros((1, 3))).all()


@given(classes=st.lists(st.integers(0, 2), min_size=1, max_size=60), size=st.integers(1, 20))
def test_a_cap_leaves_so_many_of_each_class_those_with_the_smallest_lots(classes, size):
    classes = np.array(classes)
    drawn = lots(0, "balance", [str(number) for number in range(len(classes))])
    stays = capped(classes, drawn, np.arange(len(classes)), size)
    for label in range(3):
        members = classes == label
        assert (stays & members).sum() == min(size, members.sum())
        assert drawn[members & stays].max(initial=0) <= drawn[members & ~stays].min(initial=1)


def test_of_equal_lots_the_first_in_rank_stays():
    stays = capped(np.zeros(4, dtype=int), np.array([0.5] * 4), np.array([2, 0, 3, 1]), 2)
    assert stays.tolist() == [False, True, False, True]


@pytest.mark.parametrize(("counts", "size"), [((5, 20, 11), 5), ((7, 7, 7), 7), ((0, 3, 9), 3), ((0, 0, 4), 4)])
def test_the_smallest_class_is_that_of_those_that_have_samples(counts, size):
    assert smallest_class(np.repeat([0, 1, 2], counts)) == size


def test_a_cap_draws_evenly_from_a_class():
    times = Counter()
    for seed in range(300):
        drawn = lots(seed, "balance", [f"p{number}-0" for number in range(20)])
        times.update(np.flatnonzero(capped(np.zeros(20, dtype=int), drawn, np.arange(20), 10)).tolist())
    # Each is drawn in half of 300 draws; 5 standard deviations of a fair coin are 43.
    assert all(100 < times[place] < 200 for place in range(20))


@pytest.mark.parametrize("shares", [[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [8, 1, 1], [0.9, 0.1, 0.0], [0.6, 0.0, 0.4]])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_have_the_shares_that_were_asked_for(shares, seed):
    drawn = lots(seed, "split", [str(number) for number in range(3000)])
    found = np.bincount(split_of(drawn, shares), minlength=3) / 3000
    wanted = np.array(shares) / np.sum(shares)
    # 5 standard deviations of a binomial share of 3000.
    assert np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 3000))


@given(
    drawn=arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1, exclude_max=True)),
    share=st.floats(0, 1),
)
@pytest.mark.parametrize("zero", [1, 2])
def test_a_share_of_zero_gives_an_empty_split(drawn, share, zero):
    shares = [0.5, share, share]
    shares[zero] = 0.0
    assert set(split_of(drawn, shares).tolist()) <= {0, 1, 2} - {zero}


@given(members=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=30))
def test_of_near_duplicates_in_several_splits_those_of_the_last_split_stay(members):
    groups, splits = (np.array([member[which] for member in members], dtype=np.int64) for which in (0, 1))
    stays = without_leaks(splits.astype(np.int8), groups)
    for group in set(groups.tolist()):
        kept = set(splits[stays & (groups == group)].tolist())
        assert kept == {splits[groups == group].max()}


@given(seed=st.integers(-(2**31), 2**31), names=st.lists(st.text(max_size=20), max_size=5))
def test_lots_are_fixed_numbers_from_0_to_1(seed, names):
    drawn = lots(seed, "split", names)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert drawn.tolist() == [lots(seed, "split", [name])[0] for name in names]


def test_lots_are_what_they_have_always_been():
    # Another number would move posts from split to split.
    assert lots(0, "split", ["784393626990194689"]).tolist() == [0.29847268873770205]


def test_lots_for_different_purposes_are_unrelated():
    names = [str(number) for number in range(2000)]
    split, balance = (lots(0, purpose, names) for purpose in ("split", "balance"))
    assert abs(np.corrcoef(split, balance)[0, 1]) < 0.12
    assert len(set(name_hashes("sample", names).tolist())) == 2000


@given(
    samples=st.lists(
        st.tuples(st.sampled_from(["a-0", "a-1", "b-0"]), st.integers(0, 2), st.integers(0, 2)), max_size=20
    ),
    seed=st.integers(0, 1000),
)
def test_ranks_depend_on_what_samples_are_and_not_on_where_they_stand(samples, seed):
    def in_order(samples):
        keys = pa.array([key for key, _, _ in samples], pa.large_string())
        soft_labels = np.array([[label / 4, 0.5, 0.5 - label / 4] for _, label, _ in samples], dtype=np.float32)
        sha256 = pack_hashes([random_hash(str(content)) for _, _, content in samples])
        found = ranks(keys, soft_labels.reshape(-1, 3), list(sha256.view(np.uint64).T))
        assert sorted(found.tolist()) == list(range(len(samples)))
        return [samples[place] for place in np.argsort(found)]

    shuffled = [samples[place] for place in np.random.default_rng(seed).permutation(len(samples))]
    assert in_order(samples) == in_order(shuffled)
    assert [key for key, _, _ in in_order(samples)] == sorted(key for key, _, _ in samples)


def test_samples_that_are_equal_in_all_keep_the_order_in_which_they_stand():
    keys = pa.array(["b", "a", "a", "a"], pa.large_string())
    assert ranks(keys, np.ones((4, 3), dtype=np.float32), []).tolist() == [3, 0, 1, 2]


def test_a_picture_is_in_a_benchmark_by_equal_bytes_or_by_a_near_duplicate():
    a, b = random_hash("a"), random_hash("b")
    sha256 = pack_hashes([random_hash(name) for name in ("x", "y", "z", "w")])
    pdq = pack_hashes([b, flipped(a, 31), flipped(a, 32), random_hash("other")])
    benchmark = BenchmarkPictures(num_undecodable=0, sha256=pack_hashes([random_hash("x")]), pdq=pack_hashes([a]))
    assert is_in_benchmarks(sha256, pdq, [benchmark]).tolist() == [True, True, False, False]


def test_a_hash_that_agrees_in_its_first_word_alone_is_another():
    one = random_hash("x")
    sha256 = pack_hashes([one[:16] + random_hash("y")[16:]])
    benchmark = BenchmarkPictures(num_undecodable=0, sha256=pack_hashes([one]), pdq=NONE)
    assert is_in_benchmarks(sha256, sha256, [benchmark]).tolist() == [False]


def test_a_benchmark_without_pictures_touches_nothing():
    pictures = pack_hashes([random_hash("x"), random_hash("y")])
    empty = BenchmarkPictures(num_undecodable=0, sha256=NONE, pdq=NONE)
    assert not is_in_benchmarks(pictures, pictures, [empty]).any()
