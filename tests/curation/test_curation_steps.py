from collections import Counter

import numpy as np
import pytest
from curation_samples import flipped, keeps_the_same_keys_in_any_order, kept, permuted, random_hash, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.curation.near_duplicates import hash_bits
from xmodal.curation.steps import (
    best_of_near_duplicates,
    confident,
    first_of_duplicates,
    outside_posts,
    posts_in_benchmarks,
    undersampled,
)

A, B = random_hash("a"), random_hash("b")
LABELS = {"negative": [0.8, 0.1, 0.1], "neutral": [0.1, 0.8, 0.1], "positive": [0.1, 0.1, 0.8]}


def test_of_pictures_with_equal_bytes_the_smallest_key_stays():
    samples = samples_of(["p3-0", "p1-1", "p2-0", "p1-0"], sha256=["x", "x", "y", "x"])
    assert kept(samples, first_of_duplicates(samples)) == {"p1-0", "p2-0"}
    assert keeps_the_same_keys_in_any_order(samples, first_of_duplicates)


@given(sha256=st.lists(st.sampled_from("abcde"), min_size=1, max_size=30))
def test_exactly_one_of_each_equal_picture_stays(sha256):
    samples = samples_of([f"p{number}-0" for number in range(len(sha256))], sha256=sha256)
    stays = first_of_duplicates(samples)
    assert sorted(samples.sha256[stays]) == sorted(set(sha256))


def test_of_near_duplicates_the_largest_picture_stays():
    samples = samples_of(["p1-0", "p2-0", "p3-0"], hashes=[A, flipped(A, 10), B], num_pixels=[100, 400, 50])
    assert kept(samples, best_of_near_duplicates(samples)) == {"p2-0", "p3-0"}
    assert keeps_the_same_keys_in_any_order(samples, best_of_near_duplicates)


def test_of_equally_large_near_duplicates_the_smallest_key_stays():
    samples = samples_of(["p9-0", "p10-0", "p2-0"], hashes=[A, flipped(A, 10), flipped(A, 5)])
    assert kept(samples, best_of_near_duplicates(samples)) == {"p10-0"}
    assert keeps_the_same_keys_in_any_order(samples, best_of_near_duplicates)


def test_one_of_a_chain_of_near_duplicates_stays():
    chain = [A, flipped(A, 30), flipped(A, 60), flipped(A, 90)]
    samples = samples_of(["p1-0", "p2-0", "p3-0", "p4-0"], hashes=chain, num_pixels=[1, 2, 3, 4])
    assert kept(samples, best_of_near_duplicates(samples)) == {"p4-0"}
    assert keeps_the_same_keys_in_any_order(samples, best_of_near_duplicates)


def test_a_post_is_in_a_benchmark_by_equal_bytes_or_by_a_near_duplicate():
    samples = samples_of(
        ["equal-0", "near-0", "far-0", "other-0"],
        sha256=["x", "y", "z", "w"],
        hashes=[B, flipped(A, 31), flipped(A, 32), random_hash("other")],
    )
    assert posts_in_benchmarks(samples, ["x"], hash_bits([A])).tolist() == ["equal", "near"]


def test_a_benchmark_without_pictures_touches_no_post():
    samples = samples_of(["p1-0", "p2-0"])
    assert posts_in_benchmarks(samples, [], hash_bits([])).tolist() == []
    assert outside_posts(samples, posts_in_benchmarks(samples, [], hash_bits([]))).all()


def test_all_pictures_of_a_post_in_a_benchmark_are_dropped():
    samples = samples_of(["p1-0", "p1-1", "p10-0", "p2-0"], sha256=["x", "y", "z", "w"])
    touched = posts_in_benchmarks(samples, ["y"], hash_bits([]))
    assert kept(samples, outside_posts(samples, touched)) == {"p10-0", "p2-0"}


def test_a_post_is_known_by_a_picture_that_was_dropped_as_a_duplicate():
    samples = samples_of(["p1-0", "p2-0", "p2-1"], sha256=["x", "x", "y"])
    touched = posts_in_benchmarks(samples, ["x"], hash_bits([]))
    left = samples.take(first_of_duplicates(samples))
    assert kept(left, np.ones(len(left), dtype=bool)) == {"p1-0", "p2-1"}
    assert not outside_posts(left, touched).any()


def test_a_probability_equal_to_the_threshold_is_not_confident():
    samples = samples_of(
        ["equal-0", "above-0", "below-0"], soft_labels=[[0.1, 0.2, 0.7], [0.1, 0.15, 0.75], [0.2, 0.2, 0.6]]
    )
    assert kept(samples, confident(samples, [[0, 0, 0.7]])) == {"above-0"}


def test_each_class_has_its_own_threshold():
    samples = samples_of(["negative-0", "neutral-0", "positive-0"], soft_labels=list(LABELS.values()))
    assert confident(samples, [[0.9, 0.7, 0.8]]).tolist() == [False, True, False]
    assert confident(samples, [[0.7, 0.9, 0.7]]).tolist() == [True, False, True]


def test_each_dataset_has_thresholds_of_its_own():
    labels = [[0.05, 0.05, 0.9], [0.05, 0.05, 0.9], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]]
    samples = samples_of(["a-0", "b-0", "c-0", "d-0"], datasets=[0, 1, 0, 1], soft_labels=labels)
    assert kept(samples, confident(samples, [[0.7, 0.7, 0.7], [0.7, 0.9, 0.9]])) == {"a-0", "c-0", "d-0"}
    assert kept(samples, confident(samples, [[0.9, 0.7, 0.95], [0.7, 0.9, 0.7]])) == {"b-0", "d-0"}


def test_no_threshold_keeps_everything():
    samples = samples_of(["p1-0", "p2-0"], soft_labels=[[1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3]])
    assert confident(samples, [[0, 0, 0]]).all()


def labelled(counts: dict[str, int]):
    names = [name for name, count in counts.items() for _ in range(count)]
    keys = [f"{name}{number}-0" for number, name in enumerate(names)]
    return samples_of(keys, soft_labels=[LABELS[name] for name in names])


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ({"negative": 5, "neutral": 20, "positive": 11}, 5),
        ({"negative": 7, "neutral": 7, "positive": 7}, 7),
        ({"negative": 0, "neutral": 3, "positive": 9}, 3),
        ({"negative": 0, "neutral": 0, "positive": 4}, 4),
    ],
)
def test_undersampling_cuts_every_class_to_the_smallest_that_has_samples(counts, size):
    samples = labelled(counts)
    left = Counter(samples.classes[undersampled(samples, 0)].tolist())
    assert left == {number: size for number, count in enumerate(counts.values()) if count}


def test_who_is_left_out_by_undersampling_depends_on_the_seed_alone():
    samples = labelled({"negative": 10, "neutral": 40, "positive": 40})
    assert keeps_the_same_keys_in_any_order(samples, lambda left: undersampled(left, 0))
    assert kept(samples, undersampled(samples, 0)) == kept(samples, undersampled(samples, 0))
    assert kept(samples, undersampled(samples, 0)) != kept(samples, undersampled(samples, 1))


def test_undersampling_draws_evenly_from_a_class():
    samples = labelled({"negative": 10, "positive": 20})
    times = Counter(key for seed in range(300) for key in kept(samples, undersampled(samples, seed)))
    positive = [times[key] for key in samples.keys.tolist() if key.startswith("positive")]
    # Each is drawn in half of 300 draws; 5 standard deviations of a fair coin are 43.
    assert all(100 < count < 200 for count in positive)


@given(seed=st.integers(0, 10**6), num_posts=st.integers(1, 12))
@settings(max_examples=30)
def test_no_step_depends_on_the_order_of_the_samples(seed, num_posts):
    generator = np.random.default_rng(seed)
    keys = [f"p{post}-{number}" for post in range(num_posts) for number in range(generator.integers(1, 4))]
    families = [flipped(random_hash(str(generator.integers(4))), int(generator.integers(0, 40))) for _ in keys]
    samples = samples_of(
        keys,
        sha256=[str(generator.integers(8)) for _ in keys],
        hashes=families,
        num_pixels=generator.integers(1, 4, len(keys)).tolist(),
        soft_labels=generator.dirichlet([1, 1, 1], len(keys)).tolist(),
    )
    other = permuted(samples, seed)
    for step in (
        first_of_duplicates,
        best_of_near_duplicates,
        lambda left: outside_posts(left, posts_in_benchmarks(left, ["0"], hash_bits([random_hash("0")]))),
        lambda left: confident(left, [[0.5, 0.5, 0.5]]),
        lambda left: undersampled(left, seed),
    ):
        assert kept(samples, step(samples)) == kept(other, step(other))
