"""The order of an epoch: pure functions from (seed, epoch, lanes) to rows. No I/O, no state.

An epoch's samples, shard after shard in a permutation of the shards, are cut into lanes of equal length. A lane is cut
into blocks of equal length, each of about as many samples as a few shards hold; within a block the order is permuted.
A global batch takes the same number of samples of every lane, and a rank owns a contiguous range of lanes: so global
batch k is the same set of samples for every number of ranks that divides the lanes.
"""

from itertools import pairwise

import numpy as np

from shards.errors import UserError

ORDER_VERSION = 1
"""Another one orders the same rows differently: a run cannot go on in the middle of an epoch."""
MAX_SEED = 2**32 - 1
"""Larger seeds would be cut into two, and be those of another epoch."""
_SHARDS_STREAM, _BLOCK_STREAM, _SAMPLE_STREAM, _OFFSET_STREAM, _REPLACEMENT_STREAM = range(5)


def lane_bounds(num_samples: int, num_lanes: int, offset: int = 0) -> np.ndarray:
    """Cut an epoch of `num_samples` into `num_lanes` stretches of equal length.

    Returns the `num_lanes + 1` boundaries, int64. `num_samples % num_lanes` samples are left out of this epoch: the
    first `offset` of them, and the others at the end.
    """
    return offset + np.arange(num_lanes + 1, dtype=np.int64) * (num_samples // num_lanes)


def lanes_of_rank(rank: int, world_size: int, num_lanes: int) -> range:
    """The lanes that a rank reads.

    Raises UserError, with the nearest numbers of ranks that do, where the ranks do not divide the lanes.
    """
    if num_lanes % world_size:
        nearest = " or ".join(map(str, nearest_divisors(num_lanes, world_size)))
        raise UserError(
            f"stream.num_lanes: {num_lanes} lanes cannot be shared equally by {world_size} ranks",
            f"start {nearest} ranks, or begin a run whose stream.num_lanes is a multiple of {world_size}",
        )
    lanes_per_rank = num_lanes // world_size
    return range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)


def nearest_divisors(number: int, near: int) -> list[int]:
    """The largest divisor of `number` below `near` and, if there is one, the smallest above it; ascending."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below, above = [one for one in divisors if one < near], [one for one in divisors if one > near]
    return below[-1:] + above[:1]


def num_batches_of_epoch(num_samples: int, num_lanes: int, global_batch_size: int) -> int:
    """How many whole global batches an epoch has. Raises UserError where the lanes do not divide the batch."""
    if global_batch_size % num_lanes:
        raise UserError(
            f"global_batch_size: {global_batch_size} cannot take the same number of samples of {num_lanes} lanes",
            f"give a multiple of stream.num_lanes ({num_lanes})",
        )
    return num_samples // num_lanes // (global_batch_size // num_lanes)


class EpochOrder:
    """The order of one epoch over rows that lie shard after shard.

    `shard_sizes`: int64 `(num_shards,)`, rows of each shard. `bounds`: int64 `(num_lanes + 1,)`, where the lanes lie in
    the samples of the permuted shards. Memory is O(num_shards) and a block a lane; seeking is
    O(log num_shards) and making the block that it leads to, however far into the epoch.
    """

    def __init__(self, shard_sizes: np.ndarray, seed: int, epoch: int, num_lanes: int, shards_per_block: int) -> None:
        self.shard_sizes, self.num_lanes, self.shards_per_block = shard_sizes, num_lanes, shards_per_block
        self.seed, self.epoch = seed, epoch
        self._shards = _permutation(len(shard_sizes), seed, epoch, _SHARDS_STREAM)
        # Position p of the epoch lies in the shard at place `searchsorted(ends, p, "right")` of the permutation.
        self._first_rows = np.concatenate([[0], np.cumsum(shard_sizes)[:-1]])[self._shards]
        self._ends = np.cumsum(shard_sizes[self._shards])
        num_samples = int(shard_sizes.sum())
        # Without it, a single shard would never show its last samples.
        offset = int(_bits(1, seed, epoch, _OFFSET_STREAM)[0] % np.uint64(num_samples % num_lanes + 1))
        self.bounds = lane_bounds(num_samples, num_lanes, offset)
        self._blocks: dict[int, tuple[int, np.ndarray]] = {}
        """Of each lane, the block that was asked for last, and its permutation: the next rows are most likely there."""

    @property
    def samples_per_lane(self) -> int:
        """How many samples each lane has in this epoch."""
        return int(self.bounds[1] - self.bounds[0])

    def rows(self, lane: int, positions: np.ndarray) -> np.ndarray:
        """The rows (int64) at `positions` (each in `[0, samples_per_lane)`) of a lane."""
        blocks = self._block_of(lane, positions)
        shuffled = np.empty(len(positions), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            start = self._block_start(lane, block)
            shuffled[chosen] = start + self._permuted_block(lane, block)[positions[chosen] - start]
        return self._row_at(shuffled + self.bounds[lane])

    def blocks_ahead(self, lane: int, position: int, count: int) -> tuple[list[list[int]], int]:
        """The shards of the block at a lane's `position` and of those that follow it, `count` blocks in all if there
        are so many; and the position at which the first of them ends.
        """
        first = int(self._block_of(lane, np.array([position]))[0])
        last = min(first + count, self._num_blocks(lane))
        edges = [self._block_start(lane, block) for block in range(first, last + 1)]
        blocks = []
        for low, high in pairwise(edges):
            places = self._place_of(self.bounds[lane] + np.array([low, high - 1]))
            blocks.append(self._shards[places[0] : places[1] + 1].tolist())
        return blocks, edges[1]

    def replacement(self, lane: int, position: int, attempt: int) -> int:
        """A random row of the lane, to be taken for the one at `position` if that is damaged; another each attempt."""
        [bits] = _bits(1, self.seed, self.epoch, _REPLACEMENT_STREAM, lane, position, attempt)
        return int(self.rows(lane, np.array([int(bits) % self.samples_per_lane]))[0])

    def _place_of(self, positions: np.ndarray) -> np.ndarray:
        """At which place of the permutation of the shards the epoch's positions lie."""
        return np.searchsorted(self._ends, positions, side="right")

    def _row_at(self, positions: np.ndarray) -> np.ndarray:
        places = self._place_of(positions)
        shard_starts = np.where(places > 0, self._ends[places - 1], 0)
        return self._first_rows[places] + positions - shard_starts

    def _num_blocks(self, lane: int) -> int:
        """As many as make blocks of about `shards_per_block` shards, all of equal length: a short one mixes less."""
        first, last = self._place_of(np.array([self.bounds[lane], self.bounds[lane + 1] - 1])).tolist()
        return max(1, round((last - first + 1) / self.shards_per_block))

    def _block_start(self, lane: int, block: int) -> int:
        return block * self.samples_per_lane // self._num_blocks(lane)

    def _block_of(self, lane: int, positions: np.ndarray) -> np.ndarray:
        """The block that each of the lane's positions lies in: the last that starts at or before it."""
        return ((positions + 1) * self._num_blocks(lane) - 1) // self.samples_per_lane

    def _permuted_block(self, lane: int, block: int) -> np.ndarray:
        kept = self._blocks.get(lane)
        if kept is None or kept[0] != block:
            length = self._block_start(lane, block + 1) - self._block_start(lane, block)
            kept = block, _permutation(length, self.seed, self.epoch, _BLOCK_STREAM, lane, block)
            self._blocks[lane] = kept
        return kept[1]


class EpochOrders:
    """The orders of a run's epochs. The last two that were made are kept: making one takes O(shards)."""

    def __init__(self, shard_sizes: np.ndarray, seed: int, num_lanes: int, shards_per_block: int) -> None:
        self._arguments = shard_sizes, seed, num_lanes, shards_per_block
        self._made: dict[int, EpochOrder] = {}

    def __call__(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        if epoch not in self._made:
            shard_sizes, seed, num_lanes, shards_per_block = self._arguments
            kept = dict(list(self._made.items())[-1:])
            self._made = kept | {epoch: EpochOrder(shard_sizes, seed, epoch, num_lanes, shards_per_block)}
        return self._made[epoch]


def sample_generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The random numbers for one sample's augmentation in one epoch: the same whichever rank or worker draws them."""
    return np.random.Generator(_bit_generator(seed, epoch, _SAMPLE_STREAM, row))


def _bit_generator(*key: int) -> np.random.Philox:
    # A sequence of integers is hashed into independent streams; no global state, the same on every machine.
    return np.random.Philox(np.random.SeedSequence(key))


def _bits(count: int, *key: int) -> np.ndarray:
    """uint64 `(count,)`, random."""
    return _bit_generator(*key).random_raw(count)


def _permutation(length: int, *key: int) -> np.ndarray:
    """A permutation of `range(length)`, int64.

    By sorting raw bits, which numpy promises never to change, as it does not of its own permutations: an upgrade must
    not let a run resume in another order.
    """
    return np.argsort(_bits(length, *key), kind="stable")
