"""A student's probabilities for the pictures of a benchmark: every picture once, over all processes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch.utils.data import DataLoader, Dataset

from shards.augment import eval_pixels
from shards.batches import Normaliser
from shards.decode import UndecodableImageError
from shards.errors import UserError
from shards.stream import padded_batches
from xmodal.labels import CLASSES
from xmodal.students import InputSpec, input_spec

log = logging.getLogger(__name__)

_LARGEST_ON_GPU = 512
_LARGEST_ON_CPU = 32
"""Larger batches are not faster, and take memory."""


class _PictureFiles(Dataset):
    def __init__(self, paths: Sequence[Path], spec: InputSpec) -> None:
        self.paths, self.spec = paths, spec

    def __getitems__(self, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and places; the place is -1 for padding and for a picture that cannot be decoded."""
        spec, size = self.spec, self.spec.size
        pixels = np.zeros((len(places), 3, size, size), dtype=np.uint8)
        decoded = []
        for number, place in enumerate(places):
            decoded.append(place)
            if place < 0:
                continue
            try:
                pixels[number] = eval_pixels(self.paths[place].read_bytes(), size, spec.crop_share, squash=spec.squash)
            except (UndecodableImageError, OSError) as error:
                log.warning("%s: cannot be decoded (%s); left out", self.paths[place], error)
                decoded[-1] = -1
        return torch.from_numpy(pixels), torch.tensor(decoded)


@torch.inference_mode()
def predict(
    student: torch.nn.Module,
    paths: Sequence[Path],
    *,
    batch_size: int = 0,
    num_workers: int,
    accelerator: Accelerator,
    flip: bool = False,
) -> np.ndarray:
    """Probabilities, float64 `(n, 3)`, the same on all processes; NaN for pictures that cannot be decoded.

    With `flip`, the mean of those of a picture and of its mirror image. A `batch_size` of 0 is found: what fits into
    memory. Raises UserError, on all processes, where the student's own outputs are no finite numbers.
    """
    spec = input_spec(student)
    student = student.to(accelerator.device).eval()
    batch_size = batch_size or _batch_size(student, spec.size, len(paths), accelerator)
    # Our own division over the processes: Accelerate would read everything on the first one and send it around.
    batches = padded_batches(len(paths), batch_size, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(_PictureFiles(paths, spec), batch_sampler=batches, num_workers=num_workers, collate_fn=_as_is)
    probabilities = np.full((len(paths), len(CLASSES)), np.nan)
    decoded = np.zeros(len(paths), dtype=bool)
    normalise = Normaliser(spec.mean, spec.std)
    for pixels, places in loader:
        inputs = normalise(pixels.to(accelerator.device))
        predicted = student(inputs).float().softmax(dim=1)
        if flip:
            predicted = (predicted + student(inputs.flip(-1)).float().softmax(dim=1)) / 2
        gathered, gathered_places = accelerator.gather((predicted, places.to(accelerator.device)))
        real = (gathered_places >= 0).cpu()
        places_here = gathered_places.cpu()[real].numpy()
        probabilities[places_here] = gathered.cpu()[real].double().numpy()
        decoded[places_here] = True
    if not np.isfinite(probabilities[decoded]).all():
        raise UserError(
            "student: its outputs are no finite numbers",
            "its training diverged, or its weights are damaged: train it anew",
        )
    return probabilities


def _batch_size(student: torch.nn.Module, size: int, num_pictures: int, accelerator: Accelerator) -> int:
    on_cpu = accelerator.device.type == "cpu"
    largest = min(_LARGEST_ON_CPU if on_cpu else _LARGEST_ON_GPU, -(-num_pictures // accelerator.num_processes)) or 1
    # A CPU's memory gives way by the kernel's killing something: there is no error that trying could meet.
    return largest if on_cpu else fitting_batch_size(student, size, largest, accelerator)


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


def _as_is(batch: Any) -> Any:
    return batch
