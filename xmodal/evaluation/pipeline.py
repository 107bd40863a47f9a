"""A student as a function of pictures: files, bytes, Pillow images or arrays in, labels with their scores out."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from shards.augment import eval_pixels
from shards.batches import Normaliser
from shards.decode import UndecodableImageError, to_rgb
from shards.errors import UserError
from xmodal.labels import CLASSES
from xmodal.students import input_spec, load_student

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A file, its bytes, a Pillow image, or an array uint8 `(height, width, 3)`."""

_ONE = (str, os.PathLike, bytes, Image.Image, np.ndarray)

Scores: TypeAlias = list[dict[str, str | float]]
"""`{"label": …, "score": …}` of each class, the most probable first."""


class StudentPipeline:
    """A loaded student, to be called with pictures, as a pipeline of `transformers` is."""

    def __init__(self, name: str, *, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_student(name).to(self.device)
        self.spec = input_spec(self.model)
        self._normalise = Normaliser(self.spec.mean, self.spec.std)

    def __call__(self, pictures: Picture | Iterable[Picture], *, batch_size: int = 32) -> Scores | list[Scores]:
        """The scores of one picture; of several, a list of each one's. Raises UserError for one that is no picture."""
        one = isinstance(pictures, _ONE)
        scores = [_scores(row) for row in self.probabilities(pictures, batch_size=batch_size)]
        return scores[0] if one else scores

    @torch.inference_mode()
    def probabilities(self, pictures: Picture | Iterable[Picture], *, batch_size: int = 32) -> np.ndarray:
        """float64 `(n, 3)`, columns as `xmodal.labels.CLASSES`; of one picture, one row."""
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} must be at least 1", "give batch_size=32")
        given = [pictures] if isinstance(pictures, _ONE) else list(pictures)
        rows = [np.empty((0, len(CLASSES)))]
        for start in range(0, len(given), batch_size):
            pixels = self._pixels(given[start : start + batch_size], start)
            rows.append(self.model(self._normalise(pixels)).float().softmax(dim=1).double().cpu().numpy())
        return np.concatenate(rows)

    def _pixels(self, pictures: Sequence[Picture], first: int) -> torch.Tensor:
        spec = self.spec
        cropped = []
        for number, picture in enumerate(pictures, first):
            try:
                content = _content(picture)
                cropped.append(eval_pixels(content, spec.size, spec.crop_share, squash=spec.squash))
            except (UndecodableImageError, OSError, TypeError, ValueError) as error:
                which = picture if isinstance(picture, str | os.PathLike) else f"picture {number}"
                raise UserError(f"{which}: is no picture: {error}", "leave it out, or give another") from error
        return torch.from_numpy(np.stack(cropped)).to(self.device)


def _content(picture: Picture) -> bytes:
    """The bytes of a picture's file; what has none gets one without loss."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
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
    return file.getvalue()


def _scores(probabilities: np.ndarray) -> Scores:
    ordered = np.argsort(-probabilities, kind="stable")
    return [{"label": CLASSES[place], "score": float(probabilities[place])} for place in ordered]
