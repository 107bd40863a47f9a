"""Near duplicates by PDQ hash: exact with respect to the distance, no pair within it is missed.

Two pictures are near duplicates if their hashes differ in at most 31 of 256 bits (the threshold that PDQ's authors
recommend: Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019).
Hashes are packed: uint8 `(n, 32)`, which may be a memory-mapped file. This uses the cores of one machine; for several
machines, see `near_duplicates_on_ray`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from xmodal.curation import hamming

MAX_DISTANCE = 31
BLOCK = 1 << 24
"""Hashes. Of more, two blocks at a time are in memory."""
_MOST_THREADS = 8
"""Each takes up to 40 bytes for each hash of the blocks that are in memory."""

_Result = TypeVar("_Result")


def pack_hashes(hashes: Iterable[str | bytes]) -> np.ndarray:
    """Hashes in hex, or as 32 bytes each → uint8 `(n, 32)`."""
    raw = b"".join(bytes.fromhex(value) if isinstance(value, str) else value for value in hashes)
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, hamming.BYTES)


def is_near_any(packed: np.ndarray, other_packed: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Which of `packed` lie within `max_distance` bits of any of `other_packed`: bool `(n,)`."""
    near = np.zeros(len(packed), dtype=bool)
    for begin in range(0, len(packed), BLOCK):
        block = packed[begin : begin + BLOCK]
        near[begin : begin + BLOCK] = _near_in_block(block, other_packed, max_distance)
    return near


def near_groups(packed: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Groups of pictures linked by near duplication, transitively: int64 `(n,)`, the smallest place in each group."""
    parent = np.arange(len(packed))
    for begin, other_begin in pairs_of_blocks(len(packed), BLOCK):
        block, other = packed[begin : begin + BLOCK], packed[other_begin : other_begin + BLOCK]
        hamming.unite_all(parent, links_of_blocks(block, begin, other, other_begin, max_distance, num_threads()))
    hamming.point_to_roots(parent)
    return parent


def pairs_of_blocks(num_hashes: int, block: int) -> Iterator[tuple[int, int]]:
    """Where two blocks begin, for each block with itself and each two blocks: their links are those of all hashes."""
    for begin in range(0, num_hashes, block):
        for other_begin in range(begin, num_hashes, block):
            yield begin, other_begin


def links_of_blocks(
    block: np.ndarray, begin: int, other: np.ndarray, other_begin: int, max_distance: int, num_threads: int
) -> np.ndarray:
    """Pairs of places, int64 `(m, 2)`, that link whatever is near to one another in two blocks of hashes.

    They are a few times the hashes at most. Of a block with itself (`begin == other_begin`), these are all its links;
    of two blocks, they leave out what links equal hashes of one.
    """
    one_block = begin == other_begin
    sets = [_distinct(block, begin)] if one_block else [_distinct(block, begin), _distinct(other, other_begin)]
    words, first = sets[0].words, sets[0].first
    if not one_block:
        words, first = np.concatenate([words, sets[1].words]), np.concatenate([first, sets[1].first])
    size, most = len(sets[0].words), hamming.most_differences(max_distance)

    def link(starts: Sequence[int]) -> np.ndarray:
        parent = np.arange(len(words), dtype=np.int32)
        for start in starts:
            ones = hamming.sorted_keys(words, 0, size, start)
            others = ones if one_block else hamming.sorted_keys(words, size, len(words), start)
            for leaves in hamming.leaves(ones, others, most, parent):
                hamming.link_leaves(leaves, ones, others, one_block, words, most[-1], max_distance, parent)
        children = np.flatnonzero(parent != np.arange(len(words)))
        return np.stack([first[parent[children]], first[children]], axis=1)

    links = _in_threads(link, num_threads)
    return np.concatenate([sets[0].copies, *links] if one_block else links)


def num_threads() -> int:
    """As many as there are cores for this process, within what their memory allows."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


class _Distinct(NamedTuple):
    """A set of hashes without their repetitions."""

    words: np.ndarray
    """uint64 `(n, 4)`."""
    first: np.ndarray
    """int64 `(n,)`: the smallest place with that hash."""
    copies: np.ndarray
    """int64 `(m, 2)`: that place, and each other one with the same hash."""


def _distinct(packed: np.ndarray, begin: int) -> _Distinct:
    """The different hashes among some that stand at the places from `begin` on."""
    words = np.ascontiguousarray(packed).view(np.uint64)
    order = np.argsort(words[:, 0])
    # The first word tells nearly all hashes apart; sorting by the others only those that it does not is faster.
    same = words[order[1:], 0] == words[order[:-1], 0]
    doubtful = np.append(False, same) | np.append(same, False)
    rows = order[doubtful[: len(order)]]
    order[doubtful[: len(order)]] = rows[np.lexsort(words[rows].T[::-1])]
    words = words[order]
    is_new = np.append(True, (words[1:] != words[:-1]).any(axis=1))[: len(words)]
    order += begin
    first = np.minimum.reduceat(order, np.flatnonzero(is_new)) if len(order) else order
    first_of_each = first[np.cumsum(is_new) - 1]
    is_copy = first_of_each != order
    return _Distinct(words[is_new], first, np.stack([first_of_each[is_copy], order[is_copy]], axis=1))


def _near_in_block(packed: np.ndarray, other_packed: np.ndarray, max_distance: int) -> np.ndarray:
    words = np.concatenate([packed, other_packed]).view(np.uint64)
    size, most = len(packed), hamming.most_differences(max_distance)

    def mark(starts: Sequence[int]) -> np.ndarray:
        near = np.zeros(size, dtype=bool)
        for start in starts:
            ones = hamming.sorted_keys(words, 0, size, start)
            others = hamming.sorted_keys(words, size, len(words), start)
            for leaves in hamming.leaves(ones, others, most):
                hamming.mark_leaves(leaves, ones, others, words, most[-1], max_distance, near)
        return near

    return np.logical_or.reduce(_in_threads(mark, num_threads()))


def _in_threads(work: Callable[[Sequence[int]], _Result], num_threads: int) -> list[_Result]:
    """Have the starts of the chunks dealt out to as many threads; compiled code and sorting let them run at once."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, (hamming.STARTS[number::num_threads] for number in range(num_threads))))
