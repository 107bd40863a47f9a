"""`xmodal explain`: pictures with where a student looked."""

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import torch

from shards.augment import eval_box, eval_pixels
from shards.batches import Normaliser
from shards.decode import UndecodableImageError, decode_rgb
from shards.errors import ConfigError
from shards.storage import LocalStorage, Storage
from xmodal.evaluation.attention import Look, look
from xmodal.evaluation.heat_map import heat_map
from xmodal.evaluation.output_files import open_output_folder
from xmodal.evaluation.pictures import Picture, check_inputs, pictures_of
from xmodal.labels import CLASSES
from xmodal.students import InputSpec, input_spec, load_student

log = logging.getLogger(__name__)

_SUFFIX = ".explained.png"
_MAX_STEM_BYTES = 180
"""A file's name has 255, and what is written before it is whole has a longer one."""
_METHODS = {
    "rollout": "attention rollout",
    "gradient": "attention weighted by the gradient of",
    "grad_cam": "Grad-CAM of",
}


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which pictures are explained, and how."""

    model: str
    """Folder of an exported student, or name of one of the paper's models (see `xmodal models list`)."""
    inputs: list[str]
    """Files, folders, views, datasets, patterns of tars; each local or on s3://."""
    output: str = "explained"
    """Folder, or s3:// prefix, for NAME.explained.png of each picture."""
    method: Literal["rollout", "gradient"] | None = None
    """`rollout`: where the attention went, whatever the class; `gradient`: weighted by what it did to a class. By
    default rollout, and gradient where a class is asked for. Convolutional networks have Grad-CAM for gradient."""
    label: Literal["negative", "neutral", "positive"] | None = None
    """Class that is asked for (--class too); by default the predicted one."""
    split: Literal["train", "val", "test"] | None = None
    """Of views; by default all their samples."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError("inputs", self.inputs, "must name at least one picture")
        if self.label and self.method == "rollout":
            raise ConfigError("label", self.label, "has no effect on rollout, which knows no classes")


def explain(config: ExplainConfig) -> tuple[list[str], int]:
    """Write a PNG for each picture; returns where they are, and how many pictures could not be read.

    Raises UserError for what is no student, or none that can be explained so, and an input that holds no picture.
    """
    student = load_student(config.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student.to(device)
    spec = input_spec(student)
    normalise = Normaliser(spec.mean, spec.std)
    check_inputs(config.inputs, config.split)
    output = open_output_folder(config.output)
    written: list[str] = []
    names: set[str] = set()
    num_failures = 0
    for picture in pictures_of(config.inputs, config.split):
        if _was_written(picture, output):
            continue
        try:
            content = picture.read()
            pixels = eval_pixels(
                content, spec.size, spec.crop_share, squash=spec.squash, interpolation=spec.interpolation
            )
        except (UndecodableImageError, OSError) as error:
            log.warning("%s: %s", picture.path, error)
            num_failures += 1
            continue
        inputs = normalise(torch.from_numpy(pixels)[None].to(device))
        label = CLASSES.index(config.label) if config.label else None
        found = look(student, inputs, label=label, method=config.method)
        name = _name(picture, names)
        output.replace(name, explained_png(content, found, spec, label))
        written.append(f"{output.url.rstrip('/')}/{name}")
    return written, num_failures


def explained_png(content: bytes, found: Look, spec: InputSpec, label: int | None) -> bytes:
    """The PNG of an encoded picture, with where the student looked; `label` is the class that was asked for."""
    whole = decode_rgb(content)
    file = io.BytesIO()
    box = eval_box(whole.size, spec.crop_share, squash=spec.squash)
    heat_map(whole, found.heat, box, caption(found, label)).save(file, format="PNG")
    return file.getvalue()


def caption(found: Look, label: int | None) -> Sequence[str]:
    """What stands below the picture: all probabilities, the most probable first, and what the colours are."""
    order = (-found.probabilities).argsort(kind="stable").tolist()
    said = "   ".join(f"{CLASSES[place]} {found.probabilities[place]:.3f}" for place in order)
    of = "" if found.method == "rollout" else f" {CLASSES[order[0] if label is None else label]}"
    return said, f"{_METHODS[found.method]}{of}"


def _was_written(picture: Picture, output: Storage) -> bool:
    """Whether it is what an explanation was written to, which may lie in a folder that is an input."""
    if not picture.name.endswith(_SUFFIX):
        return False
    if isinstance(picture.storage, LocalStorage) and isinstance(output, LocalStorage):
        return (picture.storage.folder / picture.name).resolve().is_relative_to(output.folder.resolve())
    return f"{picture.storage.url}/{picture.name}".startswith(f"{output.url}/")


def _name(picture: Picture, taken: set[str]) -> str:
    """A name of its own for each picture, by its file's or its key, which can be written anywhere."""
    whole = (picture.key or PurePosixPath(picture.name).stem).replace("/", "-")
    text = os.fsencode(whole).decode(errors="replace")
    stem = text.encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
    name, number = f"{stem}{_SUFFIX}", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{_SUFFIX}"
    taken.add(name)
    return name
