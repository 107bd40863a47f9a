"""Near duplicates by PDQ hash: exact with respect to the distance, by comparing all pairs in blocks.

Two pictures are near duplicates if their hashes differ in at most 31 of 256 bits (the threshold that PDQ's authors
recommend: Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019).
Hashes are packed: uint8 `(n, 32)`.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_DISTANCE = 31
_BYTES = 32
_BLOCK = 1024


def pack_hashes(hashes: Iterable[str | bytes]) -> np.ndarray:
    """Hashes in hex, or as 32 bytes each → uint8 `(n, 32)`."""
    raw = b"".join(bytes.fromhex(value) if isinstance(value, str) else value for value in hashes)
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, _BYTES)


def is_near_any(packed: np.ndarray, other_packed: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Which of `packed` lie within `max_distance` bits of any of `other_packed`: bool `(n,)`."""
    near = np.zeros(len(packed), dtype=bool)
    for start, _, close in _close_blocks(packed, other_packed, max_distance):
        near[start : start + _BLOCK] |= close.any(axis=1)
    return near


def near_groups(packed: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Groups of pictures linked by near duplication, transitively: int64 `(n,)`, the smallest place in each group."""
    pairs = [np.empty((2, 0), dtype=np.int64), *near_pairs(packed, max_distance)]
    row, column = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=(len(packed), len(packed)))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, len(packed), dtype=np.int64)
    np.minimum.at(smallest, component, np.arange(len(packed)))
    return smallest[component]


def near_pairs(packed: np.ndarray, max_distance: int = MAX_DISTANCE) -> Iterator[np.ndarray]:
    """All pairs of near duplicates, in arrays int64 `(2, m)` of places, the smaller one first; each pair once.

    Of pictures with equal hashes the first stands for all: it makes a pair with each of the others, and it alone makes
    pairs with other hashes. So a thousand copies of one picture are a thousand pairs rather than half a million.
    """
    distinct, first, copy_of = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    places = np.arange(len(packed))
    copies = first[copy_of] != places
    yield np.stack([first[copy_of][copies], places[copies]])
    for start, other_start, close in _close_blocks(distinct, distinct, max_distance):
        if other_start >= start:
            row, column = np.nonzero(close)
            row, column = row + start, column + other_start
            apart = row < column
            pairs = np.stack([first[row[apart]], first[column[apart]]])
            yield np.sort(pairs, axis=0)


def _close_blocks(packed: np.ndarray, others: np.ndarray, max_distance: int) -> Iterator[tuple[int, int, np.ndarray]]:
    words, other_words = (np.ascontiguousarray(hashes).view(np.uint64) for hashes in (packed, others))
    for start in range(0, len(words), _BLOCK):
        for other_start in range(0, len(other_words), _BLOCK):
            distance = np.zeros((1, 1), dtype=np.uint16)
            for word in range(words.shape[1]):
                one = words[start : start + _BLOCK, word, np.newaxis]
                other = other_words[other_start : other_start + _BLOCK, word]
                distance = distance + np.bitwise_count(one ^ other)
            yield start, other_start, distance <= max_distance
