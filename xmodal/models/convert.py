"""The authors' Keras weights → a student's folder, with equal predictions."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import UserError
from shards.storage import LocalStorage
from xmodal.models.keras_file import KerasStudent, UnfitFileError, read_keras_student
from xmodal.published import PixelRange, PublishedModel, mean_and_std
from xmodal.students import (
    PRESETS,
    Gelu,
    StudentConfig,
    create_student,
    export_student,
    put_mlp_head,
    scale_without_antialiasing,
)

_PRESETS = {
    (768, 12, 12, 3072, 32): "ViT_B32",
    (768, 12, 12, 3072, 16): "ViT_B16",
    (1024, 24, 16, 4096, 32): "ViT_L32",
    (1024, 24, 16, 4096, 16): "ViT_L16",
}
"""Width, depth, heads, hidden units of the MLP, patch size → the preset of these sizes."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a file was found to hold, and what was taken for granted."""

    folder: str
    backbone: str
    size: int
    pixels: PixelRange
    head: str
    """The head in words."""
    parameters: int
    sha256: str
    """Of the Keras file."""


def convert(
    file: str,
    folder: str,
    *,
    model: PublishedModel | None = None,
    pixels: PixelRange | None = None,
    gelu: Gelu | None = None,
    source: str | None = None,
) -> Conversion:
    """Write the student that a Keras file of vit-keras holds to a new folder.

    A file does not tell to what range the pixels were scaled, and one of weights alone not which GELU its head has:
    `pixels` and `gelu` say so, else `model`, the published model that it is, else the pixels are 0..1 for patches of 32
    pixels at width 768 and -1..1 for all others, as the authors have it, and the GELU is Keras's own, the exact one.
    `source` is where the file came from, for the provenance.

    Raises UnfitFileError for a file that is no such student or not that model, and UserError if `folder` is there
    already or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{folder}: is there already", "give a new folder, or remove it first")
    student = read_keras_student(file)
    backbone = _PRESETS.get(
        (student.width, student.depth, student.num_heads, student.mlp_width, student.patch_size), "other"
    )
    if model and (backbone, student.image_size) != (model.backbone, model.size):
        raise UnfitFileError(
            f"{file}: holds a {backbone} for {student.image_size} pixels, but {model.name} is a {model.backbone} for "
            f"{model.size}",
            "give the file of that model, or another name",
        )
    pixels = pixels or (model.pixels if model else "0..1" if backbone == "ViT_B32" else "-1..1")
    # The authors' scripts make the head with the GELU of tensorflow_addons; Keras 2.8 says so in its whole models.
    gelu = gelu or student.head_gelu or ("tanh" if model else "exact")
    network = _network(student, backbone, pixels, gelu)
    sha256 = file_sha256(file)
    provenance: dict[str, Any] = {
        "converted_from": {
            "file": source or os.path.basename(file),
            "sha256": sha256,
            "holds": "a whole Keras model" if student.layout == "model" else "Keras weights",
            "model": model.name if model else None,
            "pixels": pixels,
            "head_gelu": gelu if student.head == "mlp" else None,
        }
    }
    LocalStorage(target.parent, create=True)  # complains of a parent that is no folder
    export_student(network, folder, crop_share=1.0, squash=True, provenance=provenance)
    return Conversion(
        folder=folder,
        backbone=backbone,
        size=student.image_size,
        pixels=pixels,
        head=_head_in_words(student, gelu),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        sha256=sha256,
    )


def file_sha256(file: str | Path) -> str:
    """Of a file's bytes, hex. Raises UserError where it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}", "check the path") from error


def _head_in_words(student: KerasStudent, gelu: Gelu) -> str:
    if student.head == "linear":
        return "linear"
    return f"two layers, {gelu} GELU{'' if student.head_gelu else ' (the file does not say)'}"


def _network(student: KerasStudent, backbone: str, pixels: PixelRange, gelu: Gelu) -> torch.nn.Module:
    mean, std = mean_and_std(pixels)
    arguments: dict[str, Any] = {
        "img_size": student.image_size,
        "pretrained_cfg_overlay": {"mean": list(mean), "std": list(std), "interpolation": "bilinear"},
    }
    if backbone == "other":
        arguments |= {
            "patch_size": student.patch_size,
            "embed_dim": student.width,
            "depth": student.depth,
            "num_heads": student.num_heads,
            "mlp_ratio": (student.mlp_width + 0.5) / student.width,  # timm rounds the product down
        }
    model = backbone if backbone in PRESETS else "ViT_B16"
    network = create_student(StudentConfig(model=model, pretrained=False, model_args=arguments))
    # With "bilinear" above: tf.image.resize, which the authors call.
    scale_without_antialiasing(network)
    if student.head == "mlp":
        put_mlp_head(network, gelu)
    network.load_state_dict({name: torch.from_numpy(weights) for name, weights in student.weights.items()})
    return network.eval()
