"""What a run says of its steps: a line on the terminal, `metrics.jsonl`, and trackers such as TensorBoard."""

import logging
import math
import resource
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards.batches import Batch
from xmodal.training.metrics_file import append_metrics, keep_metrics_until
from xmodal.training.trackers import Tracker

log = logging.getLogger(__name__)


def memory_gib() -> float:
    """Most memory that this rank has held, GiB: the GPU's where there is one, else the process's resident set."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def checksum(rows: torch.Tensor) -> int:
    """A number that tells sets of samples apart by their rows; those of disjoint sets add up to that of the whole."""
    return sum(zlib.crc32(row.to_bytes(8, "little")) for row in rows.tolist())


class StepClock:
    """Measures how long steps take and what share of it is spent waiting for data."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._waited = 0.0
        self._num_images = 0

    def data_arrived(self, num_images: int) -> None:
        """Call when a step's batches are there."""
        self._waited += time.perf_counter() - self._mark
        self._num_images += num_images

    def step_done(self) -> None:
        """Call when the optimizer has stepped."""
        self._mark = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Images per second (of this clock's rank) and the share of waiting since the last reading; starts anew."""
        elapsed = time.perf_counter() - self._start
        reading = {"images_per_second": self._num_images / elapsed, "data_wait_share": self._waited / elapsed}
        self._restart()
        return reading


class StepSums:
    """What the steps since the last line of the log add up to over all ranks, each of which has its own samples.

    A checkpoint holds it, so the first line of a resumed run is that of an unbroken one. To the last bit: each step's
    loss is added up over the ranks by itself, and in float64, in which so few float32 numbers have an exact sum; so it
    does not matter after which steps the ranks did so.
    """

    def __init__(self) -> None:
        # Of this rank, until all have added up theirs.
        self._own_losses: list[torch.Tensor] = []
        self._own_samples = self._own_damaged = 0
        # Of all ranks.
        self._loss = 0.0
        self._num_steps = self._samples = self._damaged = 0

    def add(self, micro_batches: Sequence[Batch], losses: Sequence[torch.Tensor]) -> None:
        """A step's micro-batches, and the losses of each one's samples, `(n,)`."""
        self._own_losses.append(torch.stack([one.mean() for one in losses]).mean())
        self._own_samples += sum(checksum(batch.rows) for batch in micro_batches)
        self._own_damaged += sum(len(batch.damaged) for batch in micro_batches)

    def read(self, world_size: int) -> dict[str, float]:
        """`loss`, the mean, and `samples`, a checksum, of the steps since the last reading, and of all steps so far
        `damaged`: samples that were replaced. All ranks must call it.
        """
        self._add_up(world_size)
        reading = {"loss": self._loss / self._num_steps, "samples": self._samples, "damaged": self._damaged}
        self._loss, self._num_steps, self._samples = 0.0, 0, 0
        return reading

    def state_dict(self, world_size: int) -> dict[str, Any]:
        """The sums, for a checkpoint; valid for any number of ranks. All ranks must call it."""
        self._add_up(world_size)
        return {
            "loss": self._loss if math.isfinite(self._loss) else None,  # JSON has no other numbers
            "num_steps": self._num_steps,
            "samples": self._samples,
            "damaged": self._damaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on adding up."""
        self._loss = math.nan if state["loss"] is None else state["loss"]
        self._num_steps, self._samples, self._damaged = state["num_steps"], state["samples"], state["damaged"]

    def _add_up(self, world_size: int) -> None:
        if not self._own_losses:
            return
        losses = torch.stack(self._own_losses).double()
        dist.all_reduce(losses)
        counts = torch.tensor([self._own_samples, self._own_damaged], device=losses.device)
        dist.all_reduce(counts)
        for loss in losses.tolist():
            self._loss += loss / world_size
        self._num_steps += len(losses)
        samples, damaged = counts.tolist()
        self._samples += samples
        self._damaged += damaged
        self._own_losses, self._own_samples, self._own_damaged = [], 0, 0


class StepLog:
    """Writes to `metrics.jsonl` of a run's folder and to its trackers; a resumed run goes on in all of them."""

    def __init__(self, folder: Path, *, resumed_step: int, trackers: Sequence[Tracker]) -> None:
        self._folder = folder
        keep_metrics_until(folder, resumed_step)
        self._trackers = trackers

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record `values` as of `step` done steps; `kind` is "step" or "validation"."""
        append_metrics(self._folder, kind, step, values)
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step)
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in values.items() if value is not None)
        log.info("%s %d  %s", kind, step, shown)

    def close(self) -> None:
        """Have the trackers write or send what is left."""
        for tracker in self._trackers:
            tracker.close()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
