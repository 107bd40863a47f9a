"""A student as a function of pictures: files, bytes, Pillow images or arrays in, labels with their scores out."""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from shards.decode import UndecodableImageError, to_rgb
from shards.errors import UserError
from xmodal.evaluation.predictor import Predictions, Predictor, check_finite, cpu_batch_size
from xmodal.labels import CLASSES
from xmodal.students import load_student

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A file, its bytes, a Pillow image, or an array uint8 `(height, width, 3)`."""

_ONE = (str, os.PathLike, bytes, Image.Image, np.ndarray)
_GPU_BATCH_SIZE = 64

Scores: TypeAlias = list[dict[str, str | float]]
"""`{"label": …, "score": …}` of each class, the most probable first."""


class StudentPipeline:
    """A loaded student, to be called with pictures, as a pipeline of `transformers` is."""

    def __init__(self, name: str, *, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_student(name)
        self._predictor = Predictor(self.model, device=self.device)

    def __call__(
        self, pictures: Picture | Iterable[Picture], *, batch_size: int = 0
    ) -> Scores | list[Scores] | Iterator[Scores]:
        """The scores of one picture; of a list, a list of each one's; of an iterator, an iterator of them.

        The latter takes pictures as they are needed, so there may be any number. A `batch_size` of 0 is one that suits
        the device. Raises UserError for what is no picture, and for a student whose outputs are no finite numbers.
        """
        if isinstance(pictures, _ONE):
            return _scores(self.probabilities(pictures)[0])
        scores = (_scores(row) for rows in self._batches(pictures, batch_size) for row in rows)
        return scores if isinstance(pictures, Iterator) else list(scores)

    def probabilities(self, pictures: Picture | Iterable[Picture], *, batch_size: int = 0) -> np.ndarray:
        """float64 `(n, 3)`, columns as `xmodal.labels.CLASSES`; of one picture, one row."""
        if isinstance(pictures, _ONE):
            predictions = self._predictor.one(_Given(pictures))
            _check(predictions, 0)
            return predictions.probabilities
        return np.concatenate([np.empty((0, len(CLASSES))), *self._batches(pictures, batch_size)])

    def _batches(self, pictures: Iterable[Picture], batch_size: int) -> Iterator[np.ndarray]:
        if batch_size < 0:
            raise UserError(f"batch_size: {batch_size} must be at least 0", "give 32, or 0 to have it chosen")
        size = batch_size or (cpu_batch_size(self.model) if self.device.type == "cpu" else _GPU_BATCH_SIZE)
        given = (_Given(picture) for picture in pictures)
        first = 0
        # iter() with a sentinel: until a batch is empty.
        for predictions in self._predictor(iter(lambda: list(itertools.islice(given, size)), [])):
            _check(predictions, first)
            first += len(predictions.pictures)
            yield predictions.probabilities


@dataclass(frozen=True)
class _Given:
    """A picture as the user gave it."""

    picture: Picture
    is_remote = False

    def read(self) -> bytes:
        """The bytes of its file; what has none gets one without loss."""
        picture = self.picture
        if isinstance(picture, bytes):
            return picture
        if isinstance(picture, str | os.PathLike):
            return Path(picture).read_bytes()
        try:
            if isinstance(picture, np.ndarray):
                # Pillow would take other arrays for pictures of other kinds: floats in [0, 1] for black.
                if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                    raise TypeError(f"an array {picture.dtype} {picture.shape}, not uint8 (height, width, 3)")
                picture = Image.fromarray(picture)
            if not isinstance(picture, Image.Image):
                raise TypeError(f"a {type(picture).__name__}")
            file = io.BytesIO()
            # As the decoder has it of a file: upright, transparency on white, 16 bits by their high byte.
            to_rgb(picture).save(file, format="PNG", compress_level=1)
        except (TypeError, ValueError) as error:
            raise UndecodableImageError(str(error)) from error
        return file.getvalue()


def _check(predictions: Predictions[_Given], first: int) -> None:
    """Raise UserError for the first of a batch that is no picture, and for a student whose outputs are no numbers.

    `first` is the number of the batch's first.
    """
    for place, why in sorted(predictions.failures.items()):
        picture = predictions.pictures[place].picture
        which = picture if isinstance(picture, str | os.PathLike) else f"picture {first + place}"
        raise UserError(f"{which}: is no picture: {why}", "leave it out, or give another")
    check_finite(predictions.is_finite)


def _scores(probabilities: np.ndarray) -> Scores:
    ordered = np.argsort(-probabilities, kind="stable")
    return [{"label": CLASSES[place], "score": float(probabilities[place])} for place in ordered]
