import numpy as np
import pytest
from curation_samples import flipped, permuted, random_hash, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.curation.steps import Samples, lot, split_by_post

SHARES = [0.8, 0.1, 0.1]


def split_of_keys(samples: Samples, shares=SHARES, seed=0) -> dict[str, int]:
    return dict(zip(samples.keys.tolist(), split_by_post(samples, shares, seed).tolist(), strict=True))


@given(
    pictures=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 12), st.integers(0, 31)), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_pictures_of_a_post_and_near_duplicates_fall_into_one_split(pictures, seed):
    keys = [f"p{post}-{number}" for number, (post, _, _) in enumerate(pictures)]
    # Members of a family differ from its first in up to 31 bits, all from one end, so they are near one another.
    hashes = [flipped(random_hash(str(family)), num_bits) for _, family, num_bits in pictures]
    splits = split_by_post(samples_of(keys, hashes=hashes), [1, 1, 1], seed)
    for linked_by in (0, 1):
        for name in {picture[linked_by] for picture in pictures}:
            members = [place for place, picture in enumerate(pictures) if picture[linked_by] == name]
            assert len(set(splits[members].tolist())) == 1


def test_posts_linked_by_a_chain_of_duplicates_fall_into_one_split():
    a, b = random_hash("a"), random_hash("b")
    samples = samples_of(
        ["p1-0", "p2-0", "p2-1", "p3-0", "p3-1"], hashes=[a, flipped(a, 20), b, flipped(b, 20), random_hash("c")]
    )
    for seed in range(30):
        assert len(set(split_by_post(samples, [1, 1, 1], seed).tolist())) == 1


@pytest.mark.parametrize("shares", [[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [8, 1, 1], [0.9, 0.1, 0.0], [0.6, 0.0, 0.4]])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_have_the_shares_that_were_asked_for(shares, seed):
    samples = samples_of([f"{number}-0" for number in range(3000)])
    found = np.bincount(split_by_post(samples, shares, seed), minlength=3) / len(samples)
    wanted = np.array(shares) / np.sum(shares)
    # 5 standard deviations of a binomial share of 3000.
    assert np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 3000))


@given(
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(lambda rest: [0.5, *rest]),
    zero=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40)
def test_a_share_of_zero_gives_an_empty_split(shares, zero, seed):
    shares[zero] = 0.0
    splits = split_by_post(samples_of([f"{number}-0" for number in range(60)]), shares, seed)
    assert zero not in splits
    assert set(splits.tolist()) <= {0, 1, 2}


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_splits_do_not_depend_on_the_order_of_the_samples(seed):
    generator = np.random.default_rng(seed)
    hashes = [flipped(random_hash(str(generator.integers(15))), int(generator.integers(0, 60))) for _ in range(40)]
    samples = samples_of([f"p{number // 2}-{number % 2}" for number in range(40)], hashes=hashes)
    assert split_of_keys(samples) == split_of_keys(permuted(samples, seed))


def test_unrelated_posts_do_not_move_those_that_were_there():
    few = [f"p{number}-0" for number in range(50)]
    many = [f"q{number}-0" for number in range(200)]
    before, after = split_of_keys(samples_of(few)), split_of_keys(samples_of(many + few))
    assert {key: after[key] for key in few} == before


def test_another_seed_gives_other_splits():
    samples = samples_of([f"p{number}-0" for number in range(50)])
    assert split_of_keys(samples, [1, 1, 1], seed=0) != split_of_keys(samples, [1, 1, 1], seed=1)


@given(seed=st.integers(-(2**31), 2**31), name=st.text(max_size=20))
def test_a_lot_is_a_fixed_number_from_0_to_1(seed, name):
    assert 0 <= lot(seed, "split", name) < 1
    assert lot(seed, "split", name) == lot(seed, "split", name)


def test_lots_for_different_purposes_are_unrelated():
    names = [str(number) for number in range(2000)]
    split, balance = ([lot(0, purpose, name) for name in names] for purpose in ("split", "balance"))
    assert abs(np.corrcoef(split, balance)[0, 1]) < 0.12
