"""A student's probabilities for the pictures of a benchmark: every picture once, over all processes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from shards.errors import UserError
from xmodal.evaluation.predictor import Predictor, check_finite, cpu_batch_size
from xmodal.labels import CLASSES
from xmodal.students import input_spec
from xmodal.training.mistakes import another_has_failed, by_all, by_first

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
    and fits into memory. `num_workers` as the Predictor's threads. Raises UserError, on all processes, where one of
    them cannot go on, and where the student's own outputs are no finite numbers.
    """
    predictor = Predictor(student, device=accelerator.device, num_threads=num_workers, flip=flip)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    # All ranks have as many rows: what is gathered must be of one length.
    num_rows = -(-len(paths) // world_size)
    batch_size = batch_size or found_batch_size(student, num_rows, accelerator)
    pictures = [PictureFile(path) for path in paths[rank * num_rows : (rank + 1) * num_rows]]
    own = np.full((num_rows, len(CLASSES)), np.nan)
    own[: len(pictures)] = by_all(lambda: _probabilities(predictor, pictures, batch_size))
    gathered = accelerator.gather(torch.from_numpy(own).to(accelerator.device))
    return gathered.cpu().numpy()[: len(paths)]


def require_same(asked: Mapping[str, Any]) -> None:
    """Raise UserError, on all processes, where one of them was asked for something else than the first."""
    of_first = by_first(lambda: asked)

    def compare() -> None:
        for name, value in asked.items():
            if of_first[name] != value:
                raise UserError(
                    f"{name}: {value}, but {of_first[name]} on the first process",
                    "give all processes the same settings, and the same student",
                )

    by_all(compare)


def found_batch_size(student: torch.nn.Module, num_pictures: int, accelerator: Accelerator) -> int:
    """Pictures of a forward pass: on a CPU what is fastest, on a GPU what fits into memory, within reason.

    Raises UserError, on all processes, where not even one picture does.
    """
    if accelerator.device.type == "cpu":
        return cpu_batch_size(student)
    largest = min(_LARGEST_ON_GPU, num_pictures) or 1
    return by_all(lambda: fitting_batch_size(student, input_spec(student).size, largest, accelerator))


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


def _probabilities(predictor: Predictor, pictures: Sequence[PictureFile], batch_size: int) -> np.ndarray:
    """Those of this process's pictures, float64 `(n, 3)`; NaN from where on another process has failed."""
    probabilities = np.full((len(pictures), len(CLASSES)), np.nan)

    def batches() -> Iterator[Sequence[PictureFile]]:
        for start in range(0, len(pictures), batch_size):
            if another_has_failed():
                return
            yield pictures[start : start + batch_size]

    first = 0
    for batch in predictor(batches()):
        check_finite(batch.is_finite)
        probabilities[first : first + len(batch.pictures)] = batch.probabilities
        first += len(batch.pictures)
        for place, why in batch.failures.items():
            log.warning("%s: %s; left out", batch.pictures[place].path, why)
    return probabilities
