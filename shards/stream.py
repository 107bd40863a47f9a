"""A view's samples as batches of pixels: `TrainStream` for epochs that can be resumed and divided over ranks,
`EvalStream` for each sample exactly once.

Both yield `Batch`es of uint8 pixels from a torch DataLoader. State is a few integers; resuming is arithmetic.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from shards.checks import require_range
from shards.decode import AugmentConfig, UndecodableImageError, decode_rgb, eval_pixels, train_pixels
from shards.errors import UserError
from shards.order import EpochOrder, lanes_of_rank, num_batches_of_epoch, sample_generator
from shards.storage import Storage
from shards.view import View, ViewSplit, target_array

log = logging.getLogger(__name__)

MAX_REPLACEMENT_TRIES = 20
MIN_REPLACED_OF_ERROR = 10


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How an epoch is divided and read."""

    num_lanes: int = 64
    """Sample streams that make up an epoch. Every number of ranks that divides it sees the same global batches."""
    shards_per_block: int = 4
    """Shards whose samples a lane mixes. More mixes better and needs that many shards at hand at a time."""
    num_workers: int = 1
    """Processes per rank that read and decode; 0 does it in the training process."""
    max_replaced_share: float = 0.01
    """More undecodable pictures than this share of those read (replacements too) is an error, once they are over 10."""
    seed: int = 0
    """Decides the order and the augmentation of every epoch."""

    def __post_init__(self) -> None:
        require_range(self, "num_lanes", "shards_per_block", least=1)
        require_range(self, "num_workers", "seed", least=0)
        require_range(self, "max_replaced_share", least=0, most=1)


class Batch(NamedTuple):
    """Some samples. `pixels` uint8 `(n, 3, size, size)`; `targets` float32 `(n, classes)`; `rows` int64 `(n,)`, the
    samples' rows in the split; `mask` bool `(n,)`, False for padding and for what cannot be decoded; `replaced`,
    keys of undecodable samples.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor
    replaced: list[str]


class _Address(NamedTuple):
    """Where the DataLoader's worker finds a sample: the row that is due, and whence a replacement may come."""

    epoch: int
    lane: int
    position: int
    row: int


class _Reader:
    """Reads pictures of a split's rows."""

    def __init__(self, datasets: Sequence[Storage], rows: pa.Table) -> None:
        self.datasets = datasets
        self.dataset = rows["dataset"].to_numpy()
        self.shard = rows["shard"].combine_chunks().dictionary_encode()
        self.offset = rows["image_offset"].to_numpy()
        self.length = rows["image_length"].to_numpy()
        self.key = rows["key"].combine_chunks()
        self.targets = target_array(rows)

    def read(self, row: int, min_side: int | None) -> Image.Image:
        """The decoded picture of a row. Raises UndecodableImageError."""
        storage = self.datasets[self.dataset[row]]
        shard = self.shard[row].as_py()
        try:
            content = storage.read_range(shard, int(self.offset[row]), int(self.length[row]))
        except FileNotFoundError:
            raise UserError(
                f"{storage.url}/{shard}: this shard of the view is not there",
                "restore it, or curate a new view",
            ) from None
        except OSError as error:
            raise UserError(
                f"{storage.url}/{shard}: {self.key[row].as_py()}: cannot be read: {error}",
                "see to the storage; the same command goes on from the last checkpoint",
            ) from error
        return decode_rgb(content, min_side=min_side)


class _BatchDataset(Dataset, ABC):
    """A whole batch at a time. A UserError is handed on as a value: a worker's exception would reach the training
    process as a RuntimeError with two tracebacks in its text.
    """

    def __getitems__(self, places: list[Any]) -> Batch | UserError:
        try:
            return self.batch(places)
        except UserError as error:
            return error

    @abstractmethod
    def batch(self, places: list[Any]) -> Batch:
        """The batch of what the batch sampler lists."""


class _TrainDataset(_BatchDataset):
    def __init__(
        self,
        reader: _Reader,
        size: int,
        augment: AugmentConfig,
        order: Callable[[int], EpochOrder],
        seed: int,
    ) -> None:
        self.reader, self.size, self.augment, self.order, self.seed = reader, size, augment, order, seed

    def batch(self, places: list[_Address]) -> Batch:
        pixels = np.empty((len(places), 3, self.size, self.size), dtype=np.uint8)
        rows = np.empty(len(places), dtype=np.int64)
        replaced: list[str] = []
        for number, address in enumerate(places):
            rows[number], image = self._read_or_replace(address, replaced)
            generator = sample_generator(self.seed, address.epoch, int(rows[number]))
            pixels[number] = train_pixels(image, self.size, self.augment, generator)
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(self.reader.targets[rows]),
            torch.from_numpy(rows),
            torch.ones(len(places), dtype=torch.bool),
            replaced,
        )

    def _read_or_replace(self, address: _Address, replaced: list[str]) -> tuple[int, Image.Image]:
        # A crop may keep a small part, and of that one side is shorter: the scaled decoding must leave enough for it.
        min_side = int(self.size * (self.augment.max_crop_aspect / self.augment.min_crop_area) ** 0.5) + 1
        row = address.row
        for attempt in range(MAX_REPLACEMENT_TRIES):
            try:
                return row, self.reader.read(row, min_side)
            except UndecodableImageError:
                replaced.append(self.reader.key[row].as_py())
                row = self._replacement(address, attempt)
        raise UserError(
            f"{self.reader.key[address.row].as_py()}: this picture and {MAX_REPLACEMENT_TRIES - 1} others of its lane "
            "cannot be decoded",
            "check the shards: their content is not what was committed",
        )

    def _replacement(self, address: _Address, attempt: int) -> int:
        """Another row of the same lane: a function of the address, so the same on every rank and worker."""
        order = self.order(address.epoch)
        generator = np.random.default_rng([self.seed, address.epoch, address.lane, address.position, attempt])
        position = generator.integers(0, order.samples_per_lane, 1)
        return int(order.rows(address.lane, position)[0])


class _AsSampler(Sampler[list[_Address]]):
    """A generator as the DataLoader wants it."""

    def __init__(self, addresses: Iterator[list[_Address]]) -> None:
        self._addresses = addresses

    def __iter__(self) -> Iterator[list[_Address]]:
        return self._addresses


class TrainStream:
    """One rank's part of an endless sequence of epochs over a split, resumable at any step.

    Iterating yields, for each optimizer step that is left of the current epoch, a list of `micro_batches` batches of
    `global_batch_size / world_size / micro_batches` samples; then the stream stands at the next epoch.
    """

    def __init__(
        self,
        view: View,
        *,
        config: StreamConfig,
        size: int,
        augment: AugmentConfig,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        split: str = "train",
    ) -> None:
        part: ViewSplit = view.split(split)
        self.config = config
        self._shard_sizes = part.shard_sizes
        self.num_samples = part.rows.num_rows
        self.steps_per_epoch = num_batches_of_epoch(self.num_samples, config.num_lanes, global_batch_size)
        if not self.steps_per_epoch:
            raise UserError(
                f"{view.url}: {self.num_samples} samples in {split} do not fill a global batch of {global_batch_size}",
                "lower global_batch_size, or curate more posts",
            )
        self.lanes = lanes_of_rank(rank, world_size, config.num_lanes)
        self.samples_per_lane_and_step = global_batch_size // config.num_lanes
        local_batch_size = global_batch_size // world_size
        if local_batch_size % micro_batches:
            raise UserError(
                f"{local_batch_size} samples a rank cannot be cut into {micro_batches} equal micro-batches",
                "choose a micro_batch_size that divides global_batch_size / ranks",
            )
        self.micro_batches = micro_batches
        self.micro_batch_size = local_batch_size // micro_batches
        self.fingerprint = view.fingerprint
        self.epoch = 0
        self.step = 0
        self.num_replaced = 0
        self.num_read = 0
        reader = _Reader(view.datasets, part.rows)
        self._dataset = _TrainDataset(reader, size, augment, self.order, config.seed)

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(
            self._shard_sizes, self.config.seed, epoch, self.config.num_lanes, self.config.shards_per_block
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: `step` steps of `epoch` are done. Valid for any number of ranks."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seed": self.config.seed,
            "num_lanes": self.config.num_lanes,
            "shards_per_block": self.config.shards_per_block,
            "samples_per_lane_and_step": self.samples_per_lane_and_step,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands. Raises UserError if it is of another view, seed, lanes or batch size."""
        for name, now in self.state_dict().items():
            if name not in ("epoch", "step") and state[name] != now:
                raise UserError(
                    f"checkpoint: the stream's {name} was {state[name]!r} and is {now!r} now",
                    "resume with the view and the settings of the first run, or start a new output folder",
                )
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[list[Batch]]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=_AsSampler(self._addresses(self.epoch, self.step)),
            num_workers=self.config.num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.config.num_workers else None,
            generator=torch.Generator(),  # else each epoch would draw from the global one, and dropout see it
        )
        step: list[Batch] = []
        for batch in _batches(loader):
            self._count(batch)
            step.append(batch)
            if len(step) == self.micro_batches:
                self.step += 1
                if self.step == self.steps_per_epoch:
                    self.epoch, self.step = self.epoch + 1, 0
                yield step
                step = []

    def _addresses(self, epoch: int, first_step: int) -> Iterator[list[_Address]]:
        """The addresses of each micro-batch that is left of an epoch, lane after lane within a step.

        Lazily: what lies before `first_step` costs nothing, and memory does not grow with the epoch.
        """
        order = self.order(epoch)
        count = self.samples_per_lane_and_step
        for step in range(first_step, self.steps_per_epoch):
            positions = np.arange(step * count, (step + 1) * count)
            local = [
                _Address(epoch, lane, position, row)
                for lane in self.lanes
                for position, row in zip(positions.tolist(), order.rows(lane, positions).tolist(), strict=True)
            ]
            for start in range(0, len(local), self.micro_batch_size):
                yield local[start : start + self.micro_batch_size]

    def _count(self, batch: Batch) -> None:
        self.num_read += len(batch.rows) + len(batch.replaced)
        self.num_replaced += len(batch.replaced)
        for key in batch.replaced:
            log.warning("%s: cannot be decoded; replaced by another sample of its lane", key)
        # A share of few samples says little: one bad picture in the first batch is no reason to stop.
        if (
            self.num_replaced > MIN_REPLACED_OF_ERROR
            and self.num_replaced > self.config.max_replaced_share * self.num_read
        ):
            raise UserError(
                f"{self.num_replaced} of {self.num_read} pictures could not be decoded, more than "
                f"stream.max_replaced_share = {self.config.max_replaced_share}",
                "check the shards, or raise stream.max_replaced_share",
            )


class _EvalDataset(_BatchDataset):
    def __init__(self, reader: _Reader, size: int, crop_share: float) -> None:
        self.reader, self.size, self.crop_share = reader, size, crop_share

    def batch(self, places: list[int]) -> Batch:
        pixels = np.zeros((len(places), 3, self.size, self.size), dtype=np.uint8)
        mask = np.array(places) >= 0
        undecodable: list[str] = []
        min_side = math.ceil(self.size / self.crop_share)
        for number, row in enumerate(places):
            if row < 0:
                continue
            try:
                pixels[number] = eval_pixels(self.reader.read(row, min_side), self.size, self.crop_share)
            except UndecodableImageError:
                undecodable.append(self.reader.key[row].as_py())
                mask[number] = False
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(self.reader.targets[places]),
            torch.tensor(places),
            torch.from_numpy(mask),
            undecodable,
        )


class EvalStream:
    """One rank's part of one pass over a split: every sample counts exactly once over all ranks.

    All ranks have the same number of batches of the same size; padding has row -1 and mask False.
    """

    def __init__(
        self,
        view: View,
        *,
        split: str,
        size: int,
        crop_share: float = 1.0,
        batch_size: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        rows = view.split(split).rows
        self.num_samples = rows.num_rows
        self._dataset = _EvalDataset(_Reader(view.datasets, rows), size, crop_share)
        self._batches = padded_batches(self.num_samples, batch_size, rank, world_size)
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._batches,
            num_workers=self._num_workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # as above
        )
        for batch in _batches(loader):
            for key in batch.replaced:
                log.warning("%s: cannot be decoded; left out", key)
            yield batch


def padded_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """A rank's rows, in batches that are equal in number and size on all ranks; -1 is padding."""
    num_batches = -(-num_samples // (batch_size * world_size))
    rows_per_rank = num_batches * batch_size
    rows = [row if row < num_samples else -1 for row in range(rank * rows_per_rank, (rank + 1) * rows_per_rank)]
    return [rows[start : start + batch_size] for start in range(0, rows_per_rank, batch_size)]


def normalise(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 `(batch, 3, height, width)` → float32 `(pixel / 255 - mean) / std`, on the device where they are."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(mean, device=pixels.device).view(shape)
    scale = torch.tensor(std, device=pixels.device).view(shape)
    return (pixels.float() / 255 - offset) / scale


def _batches(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    return batch
