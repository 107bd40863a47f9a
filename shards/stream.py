"""A view's samples as batches of pixels: `TrainStream` for epochs that can be resumed and divided over ranks,
`EvalStream` for each sample exactly once.

Both yield `Batch`es of uint8 pixels from a torch DataLoader. State is a few integers; resuming is arithmetic.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, dataloader

from shards.augment import AugmentConfig, Interpolation
from shards.batches import Address, Batch, EvalDataset, RowDataset, TrainDataset
from shards.cache import ShardCache, default_cache_folder
from shards.checks import require_range
from shards.errors import UserError
from shards.order import (
    MAX_SEED,
    ORDER_VERSION,
    EpochOrder,
    EpochOrders,
    lanes_of_rank,
    num_batches_of_epoch,
)
from shards.reader import SampleReader
from shards.view import View

log = logging.getLogger(__name__)

MIN_DAMAGED_OF_ERROR = 10
# Between the end of a worker's sockets and the signal of its own end, at most.
_SIGNAL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How an epoch is divided and read."""

    num_lanes: int = 64
    """Sample streams that make up an epoch. Every number of ranks that divides it sees the same global batches."""
    shards_per_block: int = 4
    """Shards whose samples a lane mixes. More mixes better and needs that many shards at hand at a time."""
    num_workers: int = 1
    """Processes per rank that read and decode; 0 does it in the training process."""
    cache_folder: str = ""
    """For shards on s3, shared by all processes of a node: a folder on its own disk. Empty: one a user in the
    system's temporary folder."""
    max_cache_gib: float = 64.0
    """Most that the cache may take. 0 for none: each picture is then a request of its own."""
    max_damaged_share: float = 0.01
    """More pictures that are damaged than this share of those read (replacements too) is an error, once they are over
    10. 0: the first one is an error."""
    seed: int = 0
    """Decides the order and the augmentation of every epoch."""

    def __post_init__(self) -> None:
        require_range(self, "num_lanes", "shards_per_block", least=1)
        require_range(self, "num_workers", "max_cache_gib", least=0)
        require_range(self, "seed", least=0, most=MAX_SEED)
        require_range(self, "max_damaged_share", least=0, most=1)


class _Addresses(Sampler[list[Address]]):
    """The addresses of each micro-batch from a step on, epoch after epoch, lane after lane within a step.

    Lazily: what lies before the first step costs nothing, and memory does not grow with the epoch.
    """

    def __init__(self, stream: "TrainStream") -> None:
        # Not the stream itself, which holds the workers: a cycle would be ended in an order in which they hear nothing
        # of it, and are waited for.
        self._orders, self._lanes = stream._orders, stream.lanes
        self._count, self._micro_batch_size = stream.samples_per_lane_and_step, stream.micro_batch_size
        self._epoch, self._step, self._steps_per_epoch = stream.epoch, stream.step, stream.steps_per_epoch

    def __iter__(self) -> Iterator[list[Address]]:
        epoch, first_step = self._epoch, self._step
        while True:
            for step in range(first_step, self._steps_per_epoch):
                yield from self._micro_batches(epoch, step)
            epoch, first_step = epoch + 1, 0

    def _micro_batches(self, epoch: int, step: int) -> Iterator[list[Address]]:
        order = self._orders(epoch)
        positions = np.arange(step * self._count, (step + 1) * self._count)
        local = [
            Address(epoch, lane, position, row)
            for lane in self._lanes
            for position, row in zip(positions.tolist(), order.rows(lane, positions).tolist(), strict=True)
        ]
        for start in range(0, len(local), self._micro_batch_size):
            yield local[start : start + self._micro_batch_size]


class _DamageCount:
    """Counts damaged samples, and says when they are too many."""

    def __init__(self, max_share: float, consequence: str) -> None:
        self._max_share, self._consequence = max_share, consequence
        self.num_read = 0
        self.num_damaged = 0

    def add(self, batch: Batch) -> None:
        """Log what is damaged in a batch. Raises UserError for more than the allowed share."""
        self.num_read += int(batch.mask.sum()) + len(batch.damaged)
        self.num_damaged += len(batch.damaged)
        for damage in batch.damaged:
            log.warning("%s; %s", damage, self._consequence)
        # A share of few samples says little: one bad picture in the first batch is no reason to stop.
        least = MIN_DAMAGED_OF_ERROR if self._max_share else 0
        if self.num_damaged > least and self.num_damaged > self._max_share * self.num_read:
            raise UserError(
                f"{self.num_damaged} of {self.num_read} pictures are damaged, more than stream.max_damaged_share = "
                f"{self._max_share}; the last: {batch.damaged[-1]}",
                "check the shards with `xmodal shards verify`, or raise stream.max_damaged_share",
            )


class TrainStream:
    """One rank's part of an endless sequence of epochs over a split, resumable at any step.

    Iterating yields, for each optimizer step that is left of the current epoch, a list of `micro_batches` batches of
    `global_batch_size / world_size / micro_batches` samples; then the stream stands at the next epoch, whose first
    batches are being read already.
    """

    def __init__(
        self,
        view: View,
        *,
        config: StreamConfig,
        size: int,
        augment: AugmentConfig,
        interpolation: Interpolation = "bicubic",
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        split: str = "train",
    ) -> None:
        part = view.split(split)
        self.config = config
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
        self._orders = EpochOrders(part.shard_sizes, config.seed, config.num_lanes, config.shards_per_block)
        self._damage = _DamageCount(config.max_damaged_share, "replaced by another sample of its lane")
        reader = SampleReader(view, part, _open_cache(view, config))
        self._pictures = TrainDataset(reader, size, augment, self._orders, config.seed, self.lanes, interpolation)
        self._dataset = self._pictures
        self._source: Iterator[Batch] | None = None
        self._source_stands_at = (0, 0)

    @property
    def num_damaged(self) -> int:
        """How many damaged samples this rank has met so far, and replaced."""
        return self._damage.num_damaged

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return self._orders(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: `step` steps of `epoch` are done. Valid for any number of ranks."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "order_version": ORDER_VERSION,
            "seed": self.config.seed,
            "num_lanes": self.config.num_lanes,
            "shards_per_block": self.config.shards_per_block,
            "samples_per_lane_and_step": self.samples_per_lane_and_step,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands. Raises UserError if it is of another view, seed, lanes or batch size."""
        for name, now in self.state_dict().items():
            if name not in ("epoch", "step") and state.get(name) != now:
                raise UserError(
                    f"checkpoint: the stream's {name} was {state.get(name)!r} and is {now!r} now",
                    "resume with the view and the settings of the first run, or start a new output folder",
                )
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[list[Batch]]:
        epoch = self.epoch
        while self.epoch == epoch:
            step = [self._next() for _ in range(self.micro_batches)]
            self.step += 1
            if self.step == self.steps_per_epoch:
                self.epoch, self.step = self.epoch + 1, 0
            self._source_stands_at = (self.epoch, self.step)
            yield step

    def leave_out_pixels(self, damaged_rows: np.ndarray) -> None:
        """From now on, give the same samples without reading them, for what has been made of all pictures before.

        `damaged_rows` bool `(n,)` are those of which nothing could be made: they are replaced as ever.
        """
        self._source = None
        self._dataset = RowDataset(self._pictures.reader, self._orders, self.lanes, damaged_rows)

    def read_pixels(self) -> None:
        """Read pictures again."""
        self._source = None
        self._dataset = self._pictures

    def close(self) -> None:
        """End the workers. Iterating again starts new ones."""
        self._source = None
        self._dataset.reader.close()

    def _next(self) -> Batch:
        if self._source is None or self._source_stands_at != (self.epoch, self.step):
            # Over the ends of epochs: its workers go on with the next one while this one's last steps are trained on.
            self._source_stands_at = (self.epoch, self.step)
            self._dataset.expect_anew()
            num_workers = self.config.num_workers if self._dataset is self._pictures else 0
            loader = DataLoader(
                self._dataset,
                batch_sampler=_Addresses(self),
                num_workers=num_workers,
                collate_fn=_as_is,
                worker_init_fn=_end_with_parent_alone,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if num_workers else None,
                generator=torch.Generator(),  # else each epoch would draw from the global one, and dropout see it
            )
            self._source = _batches(loader)
        try:
            batch = next(self._source)
            self._damage.add(batch)
        except BaseException:
            self._source = None  # a step that was begun is begun anew
            raise
        return batch


class EvalStream:
    """One rank's part of one pass over a split: every sample counts exactly once over all ranks.

    All ranks have the same number of batches of the same size; padding has row -1 and mask False. Of the config, what
    concerns the order has no effect. With `rows`, int64 and ascending, it is a pass over these alone.
    """

    def __init__(
        self,
        view: View,
        *,
        split: str,
        config: StreamConfig,
        size: int,
        crop_share: float = 1.0,
        squash: bool = False,
        interpolation: Interpolation = "bicubic",
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        rows: np.ndarray | None = None,
    ) -> None:
        part = view.split(split)
        self.config = config
        self.num_samples = part.rows.num_rows if rows is None else len(rows)
        reader = SampleReader(view, part, _open_cache(view, config))
        self._dataset = EvalDataset(reader, size, crop_share, squash=squash, interpolation=interpolation)
        self._batches = padded_batches(self.num_samples, batch_size, rank, world_size)
        if rows is not None:
            self._batches = [[int(rows[place]) if place >= 0 else -1 for place in batch] for batch in self._batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        damage = _DamageCount(self.config.max_damaged_share, "left out")
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._batches,
            num_workers=self.config.num_workers,
            collate_fn=_as_is,
            worker_init_fn=_end_with_parent_alone,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # as above
        )
        try:
            for batch in _batches(loader):
                damage.add(batch)
                yield batch
        finally:
            self._dataset.reader.close()


def padded_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """A rank's rows, in batches that are equal in number and size on all ranks; -1 is padding."""
    num_batches = -(-num_samples // (batch_size * world_size))
    rows_per_rank = num_batches * batch_size
    rows = [row if row < num_samples else -1 for row in range(rank * rows_per_rank, (rank + 1) * rows_per_rank)]
    return [rows[start : start + batch_size] for start in range(0, rows_per_rank, batch_size)]


def _open_cache(view: View, config: StreamConfig) -> ShardCache | None:
    """The cache of a view's shards; None where all of them lie on this machine, or none is wanted."""
    if not config.max_cache_gib or all(dataset.is_local for dataset in view.datasets):
        return None
    return ShardCache(config.cache_folder or default_cache_folder(), int(config.max_cache_gib * 2**30))


def _batches(loader: DataLoader) -> Iterator[Batch]:
    """What the workers made. Raises the UserError that one of them met."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


@contextmanager
def told_of_lost_workers() -> Iterator[None]:
    """Turn torch's error that a worker was killed into a UserError.

    It is raised wherever the main thread is at that moment, in a signal handler: so this belongs around all that is
    done while streams are open.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError) as error:
            if not _broke_off_in_a_loader(error):
                raise
            # The handler's error would come in the midst of what is done about this one: let it come here.
            time.sleep(_SIGNAL_SECONDS)
            raise _lost_worker(error) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _lost_worker(error) from error


def _lost_worker(error: Exception) -> UserError:
    return UserError(
        f"a reading process has ended: {error}",
        "most often memory ran out: lower stream.num_workers, or ask for more memory",
    )


def _broke_off_in_a_loader(error: Exception) -> bool:
    """Whether a batch broke off on its way from a worker: this may be seen before that worker's end is."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    # What a worker itself raised comes as a message, and names it.
    return "DataLoader worker" not in str(error) and dataloader.__file__ in frames


def _end_with_parent_alone(worker: int) -> None:
    """Have a reading process end at SIGTERM from its parent, and from nobody else.

    A cluster that asks a job to stop sends it to all processes; the training one needs the others to finish its step.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _as_is(batch: Any) -> Any:
    return batch
