"""A student's probabilities for the pictures of a benchmark: every picture once, over all processes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from shards.errors import UserError
from xmodal.evaluation.predictor import Predictor, check_finite, cpu_batch_size
from xmodal.labels import CLASSES
from xmodal.students import input_spec

log = logging.getLogger(__name__)

_LARGEST_ON_GPU = 512


@dataclass(frozen=True)
class PictureFile:
    """A picture on this machine, or where its file system leads."""

    path: Path
    is_remote = False

    def read(self) -> bytes:
        """Its bytes. Raises OSError."""
        return self.path.read_bytes()


def predict(
    student: torch.nn.Module,
    paths: Sequence[Path],
    *,
    batch_size: int = 0,
    num_workers: int = 0,
    accelerator: Accelerator,
    flip: bool = False,
) -> np.ndarray:
    """Probabilities, float64 `(n, 3)`, the same on all processes; NaN for pictures that cannot be decoded.

    With `flip`, the mean of those of a picture and of its mirror image. A `batch_size` of 0 is found: what is fastest
    and fits into memory. `num_workers` as the Predictor's threads. Raises UserError, on all processes, where the
    student's own outputs are no finite numbers.
    """
    predictor = Predictor(student, device=accelerator.device, num_threads=num_workers, flip=flip)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    # All ranks have as many rows: what is gathered must be of one length.
    num_rows = -(-len(paths) // world_size)
    batch_size = batch_size or found_batch_size(student, num_rows, accelerator)
    pictures = [PictureFile(path) for path in paths[rank * num_rows : (rank + 1) * num_rows]]
    probabilities = np.full((num_rows, len(CLASSES)), np.nan)
    is_finite, first = True, 0
    for batch in predictor(pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)):
        probabilities[first : first + len(batch.pictures)] = batch.probabilities
        first += len(batch.pictures)
        for place, why in batch.failures.items():
            log.warning("%s: %s; left out", batch.pictures[place].path, why)
        is_finite &= batch.is_finite
    # With a row that tells of this rank: all raise, so that none waits for one that has ended.
    rows = torch.from_numpy(np.vstack([probabilities, np.full(len(CLASSES), is_finite)]))
    gathered = accelerator.gather(rows.to(accelerator.device)).cpu().numpy()
    by_rank = gathered.reshape(world_size, num_rows + 1, len(CLASSES))
    check_finite(bool(by_rank[:, -1].all()))
    return by_rank[:, :-1].reshape(-1, len(CLASSES))[: len(paths)]


def found_batch_size(student: torch.nn.Module, num_pictures: int, accelerator: Accelerator) -> int:
    """Pictures of a forward pass: on a CPU what is fastest, on a GPU what fits into memory, within reason."""
    if accelerator.device.type == "cpu":
        return cpu_batch_size(student)
    largest = min(_LARGEST_ON_GPU, num_pictures) or 1
    return fitting_batch_size(student, input_spec(student).size, largest, accelerator)


@torch.inference_mode()
def fitting_batch_size(student: torch.nn.Module, size: int, largest: int, accelerator: Accelerator) -> int:
    """The first of `largest`, its half, its quarter … pictures that fits into the memory of every process.

    Raises UserError, on all of them, where not even one picture does.
    """
    tried = largest

    def half() -> int:
        nonlocal tried
        tried //= 2
        return tried

    @find_executable_batch_size(starting_batch_size=largest, reduce_batch_size_fn=half)
    def fits(batch_size: int) -> int:
        student(torch.zeros(batch_size, 3, size, size, device=accelerator.device))
        return batch_size

    try:
        found = fits()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        found = 0
    smallest = int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())
    if not smallest:
        raise UserError("student: not even one picture fits into memory", "evaluate on a larger GPU, or on the CPU")
    if smallest < largest:
        log.info("batches of %d pictures fit into memory", smallest)
    return smallest
