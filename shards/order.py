"""The order of an epoch: pure functions from (seed, epoch, lanes) to rows. No I/O, no state.

An epoch's samples, shard after shard in a permutation of the shards, are cut into lanes of equal length. A lane is
read in blocks of a few shards; within a block the order is permuted. A global batch takes the same number of samples
of every lane, and a rank owns a contiguous range of lanes: so global batch k is the same set of samples for every
number of ranks that divides the lanes.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np

from shards.errors import UserError

_SHARDS_STREAM, _BLOCK_STREAM, _SAMPLE_STREAM = range(3)


def lane_bounds(num_samples: int, num_lanes: int) -> np.ndarray:
    """Cut an epoch of `num_samples` into `num_lanes` stretches of equal length.

    Returns the `num_lanes + 1` boundaries, int64. The last `num_samples % num_lanes` samples are left out of this
    epoch; since the shards are permuted anew each epoch, they are other samples each time.
    """
    return np.arange(num_lanes + 1, dtype=np.int64) * (num_samples // num_lanes)


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

    `shard_sizes`: int64 `(num_shards,)`, rows of each shard. Memory is O(num_shards); seeking is O(log num_shards)
    and does not depend on how far into the epoch.
    """

    def __init__(self, shard_sizes: np.ndarray, seed: int, epoch: int, num_lanes: int, shards_per_block: int) -> None:
        self.shard_sizes, self.num_lanes, self.shards_per_block = shard_sizes, num_lanes, shards_per_block
        self.seed, self.epoch = seed, epoch
        permutation = _generator(seed, epoch, _SHARDS_STREAM).permutation(len(shard_sizes))
        self._shards = permutation
        # Position p of the epoch lies in the shard at place `searchsorted(ends, p, "right")` of the permutation.
        self._first_rows = np.concatenate([[0], np.cumsum(shard_sizes)[:-1]])[permutation]
        self._ends = np.cumsum(shard_sizes[permutation])
        self._bounds = lane_bounds(int(shard_sizes.sum()), num_lanes)

    @property
    def samples_per_lane(self) -> int:
        """How many samples each lane has in this epoch."""
        return int(self._bounds[1])

    def rows(self, lane: int, positions: np.ndarray) -> np.ndarray:
        """The rows (int64) at `positions` (each in `[0, samples_per_lane)`) of a lane."""
        start, stop = self._bounds[lane], self._bounds[lane + 1]
        edges = self._block_edges(int(start), int(stop))
        blocks = np.searchsorted(edges, positions, side="right") - 1
        shuffled = np.empty(len(positions), dtype=np.int64)
        for block in np.unique(blocks):
            permutation = _block_permutation(
                self.seed, self.epoch, lane, int(block), int(edges[block + 1] - edges[block])
            )
            chosen = blocks == block
            shuffled[chosen] = edges[block] + permutation[positions[chosen] - edges[block]]
        return self._row_at(shuffled + start)

    def blocks_ahead(self, lane: int, position: int, count: int) -> tuple[list[list[int]], int]:
        """The shards of the block at a lane's `position` and of those that follow it, `count` blocks in all if there
        are so many; and the position at which the first of them ends.
        """
        start, stop = int(self._bounds[lane]), int(self._bounds[lane + 1])
        edges = self._block_edges(start, stop)
        first = int(np.searchsorted(edges, position, side="right")) - 1
        blocks = []
        for low, high in pairwise(edges[first : first + count + 1] + start):
            places = np.searchsorted(self._ends, [low, high - 1], side="right")
            blocks.append(self._shards[places[0] : places[1] + 1].tolist())
        return blocks, int(edges[first + 1])

    def _row_at(self, positions: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self._ends, positions, side="right")
        shard_starts = np.where(places > 0, self._ends[places - 1], 0)
        return self._first_rows[places] + positions - shard_starts

    def _block_edges(self, start: int, stop: int) -> np.ndarray:
        """Edges of a lane's blocks, relative to the lane's start: every `shards_per_block`-th end of a shard."""
        ends = self._ends
        inner = ends[np.searchsorted(ends, start, side="right") : np.searchsorted(ends, stop, side="left")]
        edges = inner[self.shards_per_block - 1 :: self.shards_per_block]
        return np.concatenate([[0], edges - start, [stop - start]]).astype(np.int64)


class EpochOrders:
    """The orders of a run's epochs. The last two that were asked for are kept: making one takes O(shards)."""

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


def _generator(*key: int) -> np.random.Generator:
    # A sequence of integers is hashed into independent streams; no global state, the same on every machine.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=256)
def _block_permutation(seed: int, epoch: int, lane: int, block: int, length: int) -> np.ndarray:
    return _generator(seed, epoch, _BLOCK_STREAM, lane, block).permutation(length)


def sample_generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The random numbers for one sample's augmentation in one epoch: the same whichever rank or worker draws them."""
    return _generator(seed, epoch, _SAMPLE_STREAM, row)
