import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from curation_pictures import photo, photo_bytes
from curation_samples import flipped, random_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import encode
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from xmodal.crawl.pictures import pdq_hash
from xmodal.curation import hamming, near_duplicates
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


@contextmanager
def sizes(block: int, leaf_pairs: int, at_a_time: int) -> Iterator[None]:
    """Small blocks, branches that are cut down to so few comparisons, and so few leaves in one array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "BLOCK", block)
        patch.setattr(hamming, "_LEAF_PAIRS", leaf_pairs)
        patch.setattr(hamming, "_LEAVES_AT_A_TIME", at_a_time)
        yield


SIZES = st.tuples(st.sampled_from([3, 8, 4096]), st.sampled_from([0, 4, 4096]), st.sampled_from([1, 7, 4096]))
DISTANCES = st.sampled_from([0, 1, 15, 16, 31, 32, 64, 255, 256])


@given(hashes=related_hashes(), others=related_hashes(), distance=DISTANCES, small=SIZES)
@settings(max_examples=60)
def test_the_near_ones_are_those_of_a_comparison_bit_by_bit(hashes, others, distance, small):
    expected = (distances(hashes, others) <= distance).any(axis=1)
    with sizes(*small):
        assert is_near_any(pack_hashes(hashes), pack_hashes(others), distance).tolist() == expected.tolist()


@given(hashes=related_hashes(), distance=DISTANCES, small=SIZES)
@settings(max_examples=60)
def test_groups_are_the_chains_of_near_ones_in_whatever_pieces_they_are_compared(hashes, distance, small):
    with sizes(*small):
        assert near_groups(pack_hashes(hashes), distance).tolist() == linked(distances(hashes, hashes) <= distance)


def many_hashes(kind: str, num_hashes: int = 4000) -> np.ndarray:
    """Packed hashes with near ones among them, of which the distances are all that a search could stumble over."""
    generator = np.random.default_rng(0)
    bits = generator.random((num_hashes, 256)) < 0.5
    if kind == "crowd":  # all within 31 bits or so of one another: millions of near pairs
        bits = bits[:1] ^ (generator.random(bits.shape) < 0.06)
    elif kind == "half":  # the same in one half, far apart in the other: equal keys for some of the starts
        bits[:, 64:192] = bits[0, 64:192]
    elif kind == "few bits":  # as of pictures that are nearly blank
        bits = generator.random(bits.shape) < 0.05
    copies = generator.integers(num_hashes, size=num_hashes // 4)
    changed = generator.random((len(copies), 256)) < generator.choice([0.05, 0.12, 0.15], len(copies))[:, np.newaxis]
    bits[generator.integers(num_hashes, size=len(copies))] = bits[copies] ^ changed
    return np.packbits(bits, axis=1)


def distances_of_packed(packed: np.ndarray) -> np.ndarray:
    words = packed.view(np.uint64)
    return np.add.reduce([np.bitwise_count(column[:, np.newaxis] ^ column) for column in words.T], dtype=np.uint16)


@pytest.mark.parametrize("kind", ["random", "crowd", "half", "few bits"])
@pytest.mark.parametrize("leaf_pairs", [64, 1 << 15])
def test_thousands_of_hashes_are_grouped_as_by_comparing_all_of_them(kind, leaf_pairs):
    packed = many_hashes(kind)
    near = distances_of_packed(packed) <= 31
    _, component = connected_components(csr_array(near), directed=False)
    _, first = np.unique(component, return_index=True)
    with sizes(1500, leaf_pairs, 4096):
        groups = near_groups(packed)
        marked = is_near_any(packed, packed[::40])
    assert groups.tolist() == first[component].tolist()
    assert len(first) < len(packed)
    assert marked.tolist() == near[:, ::40].any(axis=1).tolist()


def test_a_file_of_hashes_is_read_where_it_lies(tmp_path):
    packed = many_hashes("random", 500)
    np.save(tmp_path / "hashes.npy", packed)
    mapped = np.load(tmp_path / "hashes.npy", mmap_mode="r")
    assert near_groups(mapped).tolist() == near_groups(packed).tolist()
    assert is_near_any(mapped, packed[:3]).tolist() == is_near_any(packed, packed[:3]).tolist()


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
