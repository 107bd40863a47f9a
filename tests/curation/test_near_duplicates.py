import io

import numpy as np
import pytest
from curation_pictures import photo, photo_bytes
from curation_samples import flipped, random_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encode
from PIL import Image

from xmodal.crawl.pictures import pdq_hash
from xmodal.curation import near_duplicates
from xmodal.curation.near_duplicates import is_near_any, near_groups, pack_hashes


def distances(hashes: list[str], others: list[str]) -> np.ndarray:
    """Hamming distances, `(n, m)`, bit by bit."""
    table = [[(int(one, 16) ^ int(other, 16)).bit_count() for other in others] for one in hashes]
    return np.array(table, dtype=int).reshape(len(hashes), len(others))


def linked(near: np.ndarray) -> list[int]:
    """For each place the smallest one that a chain of near places leads to."""
    group = list(range(len(near)))
    while True:
        following = [min(group[other] for other in np.flatnonzero(row)) for row in near]
        if following == group:
            return group
        group = following


@st.composite
def related_hashes(draw: st.DrawFn, max_size: int = 24) -> list[str]:
    """Hashes of a few families, whose members differ from their first in 0 to 64 bits anywhere."""
    families = [random_hash(f"family {number}") for number in range(3)]
    hashes = []
    for _ in range(draw(st.integers(0, max_size))):
        num_bits = draw(st.integers(0, 64))
        hashes.append(flipped(draw(st.sampled_from(families)), num_bits, draw(st.integers(0, 256 - num_bits))))
    return hashes


@given(hashes=related_hashes(), others=related_hashes(), block=st.sampled_from([1, 3, 8, 4096]))
@settings(max_examples=60)
def test_the_near_ones_are_those_of_a_comparison_bit_by_bit(hashes, others, block):
    expected = (distances(hashes, others) <= 31).any(axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_BLOCK", block)
        assert is_near_any(pack_hashes(hashes), pack_hashes(others)).tolist() == expected.tolist()


@given(hashes=related_hashes(), block=st.sampled_from([1, 3, 8, 4096]))
@settings(max_examples=60)
def test_groups_are_the_chains_of_near_ones_across_all_blocks(hashes, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_BLOCK", block)
        assert near_groups(pack_hashes(hashes)).tolist() == linked(distances(hashes, hashes) <= 31)


def test_pairs_are_found_on_both_sides_of_the_border_of_a_real_block():
    hashes = [random_hash(str(number)) for number in range(4100)]
    # The last of the first block, the first of the second, and one far from both.
    hashes[4096] = flipped(hashes[4095], 31)
    hashes[4099] = flipped(hashes[10], 31, first=200)
    groups = near_groups(pack_hashes(hashes))
    assert {place: int(group) for place, group in enumerate(groups) if place != group} == {4096: 4095, 4099: 10}


@pytest.mark.parametrize("value", [random_hash("a"), "0" * 64, "f" * 64])
@pytest.mark.parametrize("first", [0, 100, 224])
def test_a_distance_of_31_is_near_and_32_is_not(value, first):
    near, far = flipped(value, 31, first), flipped(value, 32, first)
    assert is_near_any(pack_hashes([near, far]), pack_hashes([value])).tolist() == [True, False]
    assert near_groups(pack_hashes([value, near])).tolist() == [0, 0]
    assert near_groups(pack_hashes([value, far])).tolist() == [0, 1]


def test_a_chain_of_near_ones_is_one_group_though_its_ends_are_far_apart():
    start = random_hash("a")
    chain = [start, flipped(start, 60), flipped(start, 30), flipped(start, 90)]
    assert near_groups(pack_hashes(chain)).tolist() == [0, 0, 0, 0]
    assert near_groups(pack_hashes(chain[:2])).tolist() == [0, 1]


def test_nothing_is_near_to_nothing():
    none, one = pack_hashes([]), pack_hashes([random_hash("a")])
    assert none.shape == (0, 32)
    assert is_near_any(none, one).tolist() == []
    assert is_near_any(one, none).tolist() == [False]
    assert near_groups(none).tolist() == []


@pytest.mark.parametrize(
    "copy",
    [
        photo_bytes(1, quality=40),
        photo_bytes(1, width=160, height=120),
        photo_bytes(1, width=480, height=360),
        encode(photo(1), "WEBP", quality=60),
        encode(photo(1), "PNG"),
    ],
    ids=["jpeg", "half", "larger", "webp", "png"],
)
def test_a_picture_encoded_or_sized_anew_is_near_to_its_original(copy):
    original = pack_hashes([pdq_hash(photo(1))])
    with Image.open(io.BytesIO(copy)) as image:
        assert is_near_any(pack_hashes([pdq_hash(image.convert("RGB"))]), original).tolist() == [True]


def test_different_pictures_are_not_near():
    hashes = pack_hashes([pdq_hash(photo(seed)) for seed in range(30)])
    assert near_groups(hashes).tolist() == list(range(30))
