"""A student's probabilities for the pictures of a benchmark: every picture once, over all processes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from shards.augment import eval_pixels
from shards.batches import Normaliser
from shards.decode import UndecodableImageError
from shards.errors import UserError
from shards.stream import padded_batches
from xmodal.labels import CLASSES
from xmodal.students import InputSpec, input_spec

log = logging.getLogger(__name__)


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
            except UndecodableImageError as error:
                log.warning("%s: cannot be decoded (%s); left out", self.paths[place], error)
                decoded[-1] = -1
        return torch.from_numpy(pixels), torch.tensor(decoded)


@torch.inference_mode()
def predict(
    student: torch.nn.Module, paths: Sequence[Path], *, batch_size: int, num_workers: int, accelerator: Accelerator
) -> np.ndarray:
    """Probabilities, float64 `(n, 3)`, the same on all processes; NaN for pictures that cannot be decoded.

    Raises UserError, on all processes, where the student's own outputs are no finite numbers.
    """
    spec = input_spec(student)
    student = student.to(accelerator.device).eval()
    # Our own division over the processes: Accelerate would read everything on the first one and send it around.
    batches = padded_batches(len(paths), batch_size, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(_PictureFiles(paths, spec), batch_sampler=batches, num_workers=num_workers, collate_fn=_as_is)
    probabilities = np.full((len(paths), len(CLASSES)), np.nan)
    decoded = np.zeros(len(paths), dtype=bool)
    normalise = Normaliser(spec.mean, spec.std)
    for pixels, places in loader:
        logits = student(normalise(pixels.to(accelerator.device))).float()
        gathered, gathered_places = accelerator.gather((logits.softmax(dim=1), places.to(accelerator.device)))
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


def _as_is(batch: Any) -> Any:
    return batch
