"""All pairs of 256-bit hashes within a Hamming distance, without comparing all pairs: compiled, exact.

A hash is a ring of 16 chunks of 16 bits. If two hashes differ in at most r bits, there is a chunk from which on, for
every number of chunks, these and no more than their share of r bits differ: in the first at most r / 16, in the first
two at most 2 r / 16, and so on (start after the chunk where the sum of `differences - r / 16` is greatest; Qin and
Xiao, "Pigeonring: A Principle for Faster Thresholded Similarity Search", PVLDB 2018). So for each of the 16 chunks the
hashes are sorted by the 64 bits from there on, and the tree of their common beginnings is joined with itself, without
the branches in which too many bits differ already. What is left is compared, first by those 64 bits. Since a branch is
cut as often as it has many hashes, this goes well with hashes that are alike in many bits, too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

BYTES = 32
STARTS = range(0, BYTES, 2)
"""Where the chunks begin, in bytes."""
_CHUNK_BITS = 16
_KEY_BITS = 64
_LEAF_PAIRS = 1 << 15
"""So many comparisons take no longer than to cut a branch further."""
_LEAVES_AT_A_TIME = 1 << 10
_CROWD = 16
"""Where more than one in so many keys of a leaf is alike, its hashes are taken for a crowd."""
# A branch leaves at most three on the stack besides the one that is followed next.
_STACK_SIZE = 4 * (_KEY_BITS + 1)


class SortedKeys(NamedTuple):
    """A set of hashes, sorted by the 64 bits from one of the starts on."""

    keys: np.ndarray
    """uint64 `(n,)`: those bits."""
    places: np.ndarray
    """int32 `(n,)`: which hash it is."""


def sorted_keys(words: np.ndarray, low: int, high: int, start: int) -> SortedKeys:
    """The hashes `low` to `high` of `words` (uint64 `(n, 4)`), by the bits from byte `start` on, around the ring."""
    number, byte = divmod(start, 8)
    # Words are little-endian; a key begins with its most significant bit.
    keys = words[low:high, number].byteswap()
    if byte:
        following = words[low:high, (number + 1) % words.shape[1]].byteswap()
        keys = keys << np.uint64(8 * byte) | following >> np.uint64(_KEY_BITS - 8 * byte)
    order = np.argsort(keys)
    return SortedKeys(keys[order], (order + low).astype(np.int32))


def most_differences(max_distance: int) -> np.ndarray:
    """How many of the first `d` bits of a key may differ, for each `d` from 0 to 64: int64 `(65,)`."""
    chunks_begun = -(-np.arange(_KEY_BITS + 1) // _CHUNK_BITS)
    return max_distance * _CHUNK_BITS * chunks_begun // (8 * BYTES)


def leaves(
    ones: SortedKeys, others: SortedKeys, most: np.ndarray, parent: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Which stretches of two sets are to be compared: int64 `(m, 4)`, begin and end in each.

    Of a set and itself (the same object twice) a pair is found once: in a leaf whose stretches are the same, each hash
    is to be compared with those behind it. With `parent`, a forest of the hashes to which the caller adds what it finds
    from one array of leaves to the next, stretches that are in one tree already are left out.
    """
    stack = np.zeros((_STACK_SIZE, 6), dtype=np.int64)
    stack[0, 1], stack[0, 3] = len(ones.keys), len(others.keys)
    num_open = 1
    forest = np.empty(0, dtype=np.int32) if parent is None else parent
    while num_open:
        found = np.empty((_LEAVES_AT_A_TIME, 4), dtype=np.int64)
        num_open, num_found = _descend(ones, others, ones is others, most, forest, _LEAF_PAIRS, stack, num_open, found)
        yield found[:num_found]


@njit(nogil=True, cache=True)
def link_leaves(
    leaves: np.ndarray,
    ones: SortedKeys,
    others: SortedKeys,
    one_set: bool,
    words: np.ndarray,
    most: int,
    max_distance: int,
    parent: np.ndarray,
) -> None:
    """Unite in the forest `parent` whatever is near to one another in the leaves."""
    for low, high, other_low, other_high in leaves:
        places = others.places[other_low:other_high]
        crowded = False
        for row in range(low, high):
            first = row + 1 if one_set and low == other_low else other_low
            num_alike = _count_alike(ones.keys[row], others.keys, first, other_high, most)
            if not num_alike:
                continue
            place = ones.places[row]
            if _CROWD * num_alike < len(places):
                for column in range(first, other_high):
                    if _popcount(ones.keys[row] ^ others.keys[column]) <= most:
                        other = others.places[column]
                        if _root(parent, place) != _root(parent, other) and (
                            _distance(words, place, other) <= max_distance
                        ):
                            _unite(parent, place, other)
                continue
            # A crowd: keys say little, and most of its members are linked long before all pairs are looked at.
            if not crowded:
                crowded = True
                columns = words[places].T.copy()
                roots = np.array([_root(parent, other) for other in places])
            _link_in_crowd(words[place], place, columns, places, roots, first - other_low, max_distance, parent)


@njit(nogil=True, cache=True)
def mark_leaves(
    leaves: np.ndarray,
    ones: SortedKeys,
    others: SortedKeys,
    words: np.ndarray,
    most: int,
    max_distance: int,
    near: np.ndarray,
) -> None:
    """Set `near` at the places of those of `ones` that are near to any of `others` in the leaves."""
    for low, high, other_low, other_high in leaves:
        for row in range(low, high):
            place = ones.places[row]
            if near[place] or not _count_alike(ones.keys[row], others.keys, other_low, other_high, most):
                continue
            for column in range(other_low, other_high):
                if (
                    _popcount(ones.keys[row] ^ others.keys[column]) <= most
                    and _distance(words, place, others.places[column]) <= max_distance
                ):
                    near[place] = True
                    break


@njit(nogil=True, cache=True)
def unite_all(parent: np.ndarray, links: np.ndarray) -> None:
    """Unite, in a forest, the two nodes of each link (`(m, 2)`)."""
    for node, other in links:
        _unite(parent, node, other)


@njit(nogil=True, cache=True)
def point_to_roots(parent: np.ndarray) -> None:
    """Make every node of a forest a child of its root: the smallest node of its tree."""
    for node in range(len(parent)):
        # A parent is smaller than its children, so that it points to the root already.
        parent[node] = parent[parent[node]]


@intrinsic
def _popcount(_: Any, word: Any) -> Any:
    """The number of ones in a uint64: the processor's own instruction, for several words at a time where it has one."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@njit(nogil=True, cache=True)
def _descend(
    ones: SortedKeys,
    others: SortedKeys,
    one_set: bool,
    most: np.ndarray,
    parent: np.ndarray,
    leaf_pairs: int,
    stack: np.ndarray,
    num_open: int,
    found: np.ndarray,
) -> tuple[int, int]:
    """Follow the branches on the stack until `found` is full. Returns how many are open, and how many leaves found.

    A branch is two stretches (begin and end of each), how many first bits are the same in all keys of a stretch, and
    in how many of these the two stretches differ.
    """
    num_found = 0
    while num_open and num_found < len(found):
        num_open -= 1
        low, high, other_low, other_high, bit, differences = stack[num_open]
        if low == high or other_low == other_high:
            continue
        if len(parent) and _is_one_tree(parent, ones.places[low:high], others.places[other_low:other_high]):
            continue
        if bit == _KEY_BITS or (high - low) * (other_high - other_low) <= leaf_pairs:
            found[num_found] = low, high, other_low, other_high
            num_found += 1
            continue
        itself = one_set and low == other_low
        middle = _first_with_bit(ones.keys, low, high, bit)
        other_middle = middle if itself else _first_with_bit(others.keys, other_low, other_high, bit)
        bit += 1
        if differences < most[bit]:
            stack[num_open] = low, middle, other_middle, other_high, bit, differences + 1
            num_open += 1
            if not itself:
                stack[num_open] = middle, high, other_low, other_middle, bit, differences + 1
                num_open += 1
        stack[num_open] = low, middle, other_low, other_middle, bit, differences
        stack[num_open + 1] = middle, high, other_middle, other_high, bit, differences
        num_open += 2
    return num_open, num_found


@njit(nogil=True, cache=True)
def _first_with_bit(keys: np.ndarray, low: int, high: int, bit: int) -> int:
    """Where in a sorted stretch, whose keys are the same before `bit`, the keys with that bit begin."""
    mask = np.uint64(1) << np.uint64(_KEY_BITS - 1 - bit)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] & mask:
            high = middle
        else:
            low = middle + 1
    return low


@njit(nogil=True, cache=True)
def _count_alike(key: int, keys: np.ndarray, low: int, high: int, most: int) -> int:
    """How many of `keys[low:high]` differ from `key` in at most `most` bits. Nearly all time is spent here."""
    # Unsigned places are never counted from the end, and a small sum leaves room: five times as fast.
    num_alike = np.uint32(0)
    for place in range(np.uint64(low), np.uint64(high)):
        num_alike += np.uint32(_popcount(key ^ keys[place]) <= most)
    return int(num_alike)


@njit(nogil=True, cache=True)
def _distance(words: np.ndarray, place: int, other: int) -> int:
    """In how many bits two hashes differ."""
    distance = 0
    for number in range(words.shape[1]):
        distance += _popcount(words[place, number] ^ words[other, number])
    return distance


@njit(nogil=True, cache=True)
def _link_in_crowd(
    hash_words: np.ndarray,
    place: int,
    columns: np.ndarray,
    places: np.ndarray,
    roots: np.ndarray,
    first: int,
    max_distance: int,
    parent: np.ndarray,
) -> None:
    """Unite a hash with whatever is near to it among others, of which the words (`(4, n)`) and roots are at hand.

    A root that is out of date is one of the same tree still: it costs a look, never a link.
    """
    root = _root(parent, place)
    if not _count_new(hash_words, root, columns, roots, first, max_distance):
        return
    for column in range(first, len(places)):
        other_root = roots[column]
        if other_root != root and _distance_to_column(hash_words, columns, column) <= max_distance:
            _unite(parent, place, places[column])
            united = _root(parent, place)
            for number in range(len(roots)):
                if roots[number] == root or roots[number] == other_root:
                    roots[number] = united
            root = united


@njit(nogil=True, cache=True)
def _count_new(
    hash_words: np.ndarray, root: int, columns: np.ndarray, roots: np.ndarray, first: int, max_distance: int
) -> int:
    """How many of the columns from `first` on are near to a hash and not in its tree."""
    num_new = np.uint32(0)
    for column in range(np.uint64(first), np.uint64(len(roots))):  # as in `_count_alike`
        near = _distance_to_column(hash_words, columns, column) <= max_distance
        num_new += np.uint32(near & (roots[column] != root))
    return int(num_new)


@njit(nogil=True, cache=True)
def _distance_to_column(hash_words: np.ndarray, columns: np.ndarray, column: int) -> int:
    """In how many bits a hash differs from that whose words stand in a column."""
    return (
        _popcount(hash_words[0] ^ columns[0, column])
        + _popcount(hash_words[1] ^ columns[1, column])
        + _popcount(hash_words[2] ^ columns[2, column])
        + _popcount(hash_words[3] ^ columns[3, column])
    )


@njit(nogil=True, cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    """The smallest node of a tree; halves the way to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(nogil=True, cache=True)
def _unite(parent: np.ndarray, node: int, other: int) -> None:
    """Make one tree of two; the smaller root stays one."""
    node, other = _root(parent, node), _root(parent, other)
    parent[max(node, other)] = min(node, other)


@njit(nogil=True, cache=True)
def _is_one_tree(parent: np.ndarray, places: np.ndarray, other_places: np.ndarray) -> bool:
    """Whether all of these are linked already."""
    common = _root(parent, places[0])
    for stretch in (places, other_places):
        for place in stretch:
            if _root(parent, place) != common:
                return False
    return True
