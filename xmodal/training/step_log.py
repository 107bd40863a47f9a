"""What a run says of its steps: a line on the terminal, `metrics.jsonl`, and TensorBoard."""

import logging
import resource
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from xmodal.training.metrics_file import append_metrics, keep_metrics_until

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


class StepLog:
    """Writes to `metrics.jsonl` and TensorBoard of a run's folder; a resumed run goes on in both."""

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        keep_metrics_until(folder, resumed_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record `values` as of `step` done steps; `kind` is "step" or "validation"."""
        append_metrics(self._folder, kind, step, values)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in values.items() if value is not None)
        log.info("%s %d  %s", kind, step, shown)

    def close(self) -> None:
        """Flush TensorBoard."""
        self._board.close()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
