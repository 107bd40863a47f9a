"""Near duplicates by PDQ hash: exact with respect to the distance, by comparing all pairs in blocks.

Two pictures are near duplicates if their hashes differ in at most 31 of 256 bits (the threshold that PDQ's authors
recommend: Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019).
The work grows with the square of the samples: minutes for 100,000 on a few cores, too much for many millions.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_DISTANCE = 31
_BITS = 256
_BLOCK = 4096


def hash_bits(hashes: Sequence[str]) -> np.ndarray:
    """Hex hashes → float32 `(n, 256)` of +1 and -1, whose products count equal less different bits."""
    raw = np.frombuffer(b"".join(bytes.fromhex(value) for value in hashes), dtype=np.uint8).reshape(-1, _BITS // 8)
    return np.unpackbits(raw, axis=1).astype(np.float32) * 2 - 1


def is_near_any(hashes: np.ndarray, others: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Which of `hashes` (`hash_bits`) lie within `max_distance` bits of any of `others`: bool `(n,)`."""
    near = np.zeros(len(hashes), dtype=bool)
    for start, _, similar in _similar_blocks(hashes, others, max_distance):
        near[start : start + _BLOCK] |= similar.any(axis=1)
    return near


def near_groups(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Groups of pictures linked by near duplication, transitively: int64 `(n,)`, the smallest place in each group."""
    # Equal hashes once: every pair of a thousand copies would be a million links.
    hashes, first, copy_of = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start, other_start, similar in _similar_blocks(hashes, hashes, max_distance):
        if other_start >= start:
            row, column = np.nonzero(similar)
            rows.append(row + start)
            columns.append(column + other_start)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=(len(hashes), len(hashes)))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, len(copy_of), dtype=np.int64)
    np.minimum.at(smallest, component, first)
    return smallest[component][copy_of]


def _similar_blocks(hashes: np.ndarray, others: np.ndarray, max_distance: int) -> Iterator[tuple[int, int, np.ndarray]]:
    for start in range(0, len(hashes), _BLOCK):
        for other_start in range(0, len(others), _BLOCK):
            product = hashes[start : start + _BLOCK] @ others[other_start : other_start + _BLOCK].T
            yield start, other_start, product >= _BITS - 2 * max_distance
