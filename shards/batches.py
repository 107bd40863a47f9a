"""What a reading process does: from the rows of a batch to its pixels and targets.

Pixels are bytes (or floats of the same range, see `eval_dtype`) until they are on the device: `Normaliser`.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from shards.augment import AugmentConfig, Interpolation, eval_dtype, eval_pixels, train_pixels
from shards.decode import UndecodableImageError
from shards.errors import UserError
from shards.order import EpochOrders, sample_generator
from shards.reader import DamagedSampleError, SampleReader

MAX_REPLACEMENT_TRIES = 20
_BLOCKS_AHEAD = 2
"""Of each lane, the one that is read and the next: their shards are fetched and kept."""
_SHARDS_AHEAD = 2
"""The same in evaluation, which goes from shard to shard."""


class Damage(NamedTuple):
    """A sample that gives no picture, and why."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}: {self.what}"


class Batch(NamedTuple):
    """Some samples. `pixels` `(n, 3, size, size)`, 0 to 255, uint8 in training and of `eval_dtype` in evaluation;
    `targets` float32 `(n, classes)`; `rows` int64 `(n,)`, the samples' rows in the split; `mask` bool `(n,)`, False for
    padding and for what is damaged; `damaged`, the samples that were left out (evaluation) or replaced (training).
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor
    damaged: list[Damage]


class Address(NamedTuple):
    """Where the DataLoader's worker finds a sample: the row that is due, and whence a replacement may come."""

    epoch: int
    lane: int
    position: int
    row: int


class BatchDataset(Dataset, ABC):
    """A whole batch at a time. A UserError is handed on as a value: a worker's exception would reach the training
    process as a RuntimeError with two tracebacks in its text.
    """

    def __init__(self, reader: SampleReader) -> None:
        self.reader = reader

    def __getitems__(self, places: list[Any]) -> Batch | UserError:
        try:
            return self.batch(places)
        except UserError as error:
            return error

    @abstractmethod
    def batch(self, places: list[Any]) -> Batch:
        """The batch of what the batch sampler lists."""

    def damage(self, row: int, error: Exception) -> Damage:
        """What is to be told of a row that gives no picture."""
        what = f"cannot be decoded: {error}" if isinstance(error, UndecodableImageError) else str(error)
        return Damage(self.reader.shard_name(row), self.reader.key(row), what)


class TrainDataset(BatchDataset):
    """Samples of an epoch's order, cropped at random; one that is damaged is replaced by another of its lane."""

    def __init__(
        self,
        reader: SampleReader,
        size: int,
        augment: AugmentConfig,
        orders: EpochOrders,
        seed: int,
        lanes: range,
        interpolation: Interpolation,
    ) -> None:
        super().__init__(reader)
        self.size, self.augment, self.orders, self.seed, self.lanes = size, augment, orders, seed, lanes
        self.interpolation = interpolation
        self._expected_until = (-1, 0)

    def batch(self, places: list[Address]) -> Batch:
        """The samples at some addresses. Raises UserError where a lane has nothing but damaged ones."""
        if self.reader.uses_cache:
            self._expect(places[0].epoch, places[0].position)
        pixels = np.empty((len(places), 3, self.size, self.size), dtype=np.uint8)
        rows = np.empty(len(places), dtype=np.int64)
        damaged: list[Damage] = []
        contents = self.reader.read([address.row for address in places])
        for number, (address, content) in enumerate(zip(places, contents, strict=True)):
            rows[number], pixels[number] = self._decode_or_replace(address, content, damaged)
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(self.reader.targets[rows]),
            torch.from_numpy(rows),
            torch.ones(len(places), dtype=torch.bool),
            damaged,
        )

    def expect_anew(self) -> None:
        """Say again which shards are needed: what was said before was to threads that have ended, or of other steps."""
        self._expected_until = (-1, 0)

    def _expect(self, epoch: int, position: int) -> None:
        """Let the shards be fetched that the rank's lanes are in, then those of the blocks that follow."""
        if (epoch, position) < self._expected_until and epoch == self._expected_until[0]:
            return
        now: list[int] = []
        later: list[int] = []
        ends = []
        for lane in self.lanes:
            blocks, end = self.orders(epoch).blocks_ahead(lane, position, _BLOCKS_AHEAD)
            if len(blocks) < _BLOCKS_AHEAD:
                blocks += self.orders(epoch + 1).blocks_ahead(lane, 0, 1)[0]
            now += blocks[0]
            later += [shard for block in blocks[1:] for shard in block]
            ends.append(end)
        self._expected_until = (epoch, min(ends))
        self.reader.expect(dict.fromkeys(now + later))

    def _decode_or_replace(
        self, address: Address, content: bytes | DamagedSampleError, damaged: list[Damage]
    ) -> tuple[int, np.ndarray]:
        row = address.row
        for attempt in range(MAX_REPLACEMENT_TRIES):
            try:
                if isinstance(content, DamagedSampleError):
                    raise content
                generator = sample_generator(self.seed, address.epoch, row)
                return row, train_pixels(content, self.size, self.augment, generator, self.interpolation)
            except (UndecodableImageError, DamagedSampleError) as error:
                damaged.append(self.damage(row, error))
                row = self.orders(address.epoch).replacement(address.lane, address.position, attempt)
                [content] = self.reader.read([row])
        raise self.too_many_damaged(address, f"the last: {damaged[-1]}")

    def too_many_damaged(self, address: Address, found: str) -> UserError:
        """What is raised where no replacement is any better."""
        return UserError(
            f"{self.reader.key(address.row)}: this picture and {MAX_REPLACEMENT_TRIES - 1} others of its lane are "
            f"damaged; {found}",
            "check the shards with `xmodal shards verify`: their content is not what was committed",
        )


class RowDataset(TrainDataset):
    """The same samples without their pixels, for what has been made of all pictures before: which were damaged then is
    known.
    """

    def __init__(self, reader: SampleReader, orders: EpochOrders, lanes: range, damaged_rows: np.ndarray) -> None:
        super().__init__(reader, 0, AugmentConfig(), orders, 0, lanes, "bicubic")
        self.damaged_rows = damaged_rows

    def batch(self, places: list[Address]) -> Batch:
        """The samples at some addresses. Raises UserError where a lane has nothing but damaged ones."""
        rows = np.array([self._undamaged(address) for address in places], dtype=np.int64)
        return Batch(
            torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8),
            torch.from_numpy(self.reader.targets[rows]),
            torch.from_numpy(rows),
            torch.ones(len(rows), dtype=torch.bool),
            [],
        )

    def _undamaged(self, address: Address) -> int:
        row = address.row
        for attempt in range(MAX_REPLACEMENT_TRIES):
            if not self.damaged_rows[row]:
                return row
            row = self.orders(address.epoch).replacement(address.lane, address.position, attempt)
        raise self.too_many_damaged(address, "all were found so before")


class EvalDataset(BatchDataset):
    """Samples by their rows, cropped in the middle; -1 is padding, and one that is damaged is masked."""

    def __init__(
        self, reader: SampleReader, size: int, crop_share: float, *, squash: bool, interpolation: Interpolation
    ) -> None:
        super().__init__(reader)
        self.size, self.crop_share, self.squash, self.interpolation = size, crop_share, squash, interpolation

    def batch(self, places: list[int]) -> Batch:
        """The samples in some rows, padding at the end."""
        pixels = np.zeros((len(places), 3, self.size, self.size), dtype=eval_dtype(self.interpolation))
        mask = np.array(places) >= 0
        damaged: list[Damage] = []
        rows = [row for row in places if row >= 0]  # padding stands at the end
        if rows and self.reader.uses_cache:
            last = min(self.reader.shard_of(rows[-1]) + _SHARDS_AHEAD, self.reader.num_shards)
            self.reader.expect(range(self.reader.shard_of(rows[0]), last))
        for number, content in enumerate(self.reader.read(rows)):
            try:
                if isinstance(content, DamagedSampleError):
                    raise content
                pixels[number] = eval_pixels(
                    content, self.size, self.crop_share, squash=self.squash, interpolation=self.interpolation
                )
            except (UndecodableImageError, DamagedSampleError) as error:
                damaged.append(self.damage(rows[number], error))
                mask[number] = False
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(self.reader.targets[places]),
            torch.tensor(places),
            torch.from_numpy(mask),
            damaged,
        )


class Normaliser:
    """`(batch, 3, height, width)`, 0 to 255, uint8 or float32 → float32 `(pixel / 255 - mean) / std`, where they are.

    In memory that it keeps: what it returned is overwritten by its next call. On a CPU the kernel would else clear new
    pages for each batch, in twice the time of the arithmetic.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        inverse = 1 / torch.tensor(std).view(1, -1, 1, 1)
        self._scale, self._offset = inverse / 255, torch.tensor(mean).view(1, -1, 1, 1) * inverse
        self._memory = torch.empty(0)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise a batch."""
        memory = self._memory
        if memory.device != pixels.device or memory.shape[1:] != pixels.shape[1:] or len(memory) < len(pixels):
            self._memory = torch.empty_like(pixels, dtype=torch.float32)  # the channels where they were
            self._scale, self._offset = self._scale.to(pixels.device), self._offset.to(pixels.device)
        # In place after one conversion: a product of bytes and floats would take twice the time of both.
        return self._memory[: len(pixels)].copy_(pixels).mul_(self._scale).sub_(self._offset)
