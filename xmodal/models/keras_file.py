"""A vit-keras student in an HDF5 file → its weights by timm's names.

Keras writes three layouts: whole models (`model.save("m.h5")`: the layers as JSON and the weights under
`model_weights`), weights alone (`save_weights("m.h5")`: the same groups at the root), and the newer weights alone
(`save_weights("m.weights.h5")`: numbered variables under `layers`). All three are read here, of Keras 2 and 3.

Such files come from strangers. Nothing in them is executed, not even what Keras itself would unpickle: the JSON is read
as JSON, the weights as arrays of floats, and whatever a vit-keras student does not have is an error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from shards.errors import UserError
from xmodal.models.keras_layers import NoStudentError, read_architecture
from xmodal.models.keras_weights import Dimensions, check_shapes, named_weights, read_dimensions
from xmodal.students import Gelu

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What h5py raises for files that are damaged: HDF5's own errors come as any of these.
_HDF5_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class KerasStudent:
    """What a file holds of a vit-keras student."""

    weights: Mapping[str, np.ndarray]
    """timm's names → float32 arrays in timm's layouts."""
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    """Hidden units of each block's MLP."""
    head: Literal["linear", "mlp"]
    head_gelu: Gelu | None
    """Which GELU the head of two layers has; None where the file does not say, and for the linear head."""
    layout: Literal["model", "weights"]


class UnfitFileError(UserError):
    """A file that is no student of vit-keras, or not the one that it should be."""


def read_keras_student(path: str) -> KerasStudent:
    """Read the file of a vit-keras ViT with three outputs.

    Raises UnfitFileError for every other file, and UserError for one that cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            signature = file.read(len(_SIGNATURE))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "check the path") from error
    if signature != _SIGNATURE:
        raise UnfitFileError(
            f"{path}: is no HDF5 file", "give the .h5 file that Keras wrote; a page of a web site is none"
        )
    try:
        with h5py.File(path, "r") as file:
            return _read(file, Path(path).stat().st_size)
    except NoStudentError as error:
        raise UnfitFileError(
            f"{path}: {_one_line(str(error))}",
            "only ViTs of vit-keras with three outputs can be converted; nothing of the file was executed",
        ) from error
    except _HDF5_ERRORS as error:
        reason = _one_line(str(error)) or type(error).__name__
        raise UnfitFileError(f"{path}: is damaged or cut off: {reason}", "get the file again") from error


def _one_line(text: str) -> str:
    """A message with names from the file, which may be made to look like other lines of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text.strip())[:300]


def _read(file: h5py.File, num_bytes: int) -> KerasStudent:
    config = file.attrs.get("model_config")
    architecture = None if config is None else read_architecture(config)
    root = file
    if architecture or "model_weights" in file:
        # A link would lead into another file of whoever converts.
        is_here = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
        root = file["model_weights"] if is_here else None
    if not isinstance(root, h5py.Group):
        raise NoStudentError("model_weights is no group of its own")
    found = dict(named_weights(root))
    sizes = read_dimensions(found, architecture)
    check_shapes(found, sizes)
    # A few bytes may claim to be gigabytes of zeros.
    if sum(map(_bytes_to_read, found.values())) > num_bytes:
        raise NoStudentError("holds less than its weights would take")
    return KerasStudent(
        weights=_timm_weights(found, sizes),
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_width=sizes.mlp_width,
        head="linear" if len(sizes.head_layers) == 1 else "mlp",
        head_gelu=architecture.head_gelu if architecture else None,
        layout="weights" if architecture is None else "model",
    )


def _bytes_to_read(weight: h5py.Dataset) -> int:
    """What HDF5 takes memory for: also for all of a chunk of which a weight is a small part."""
    return max(weight.nbytes, math.prod(weight.chunks or ()) * weight.dtype.itemsize)


def _timm_weights(found: Mapping[str, h5py.Dataset], sizes: Dimensions) -> dict[str, np.ndarray]:
    """Keras's layouts → timm's."""

    def read(name: str) -> np.ndarray:
        values = found[name].astype(np.float32)[()]
        if not np.isfinite(values).all():
            raise NoStudentError(f"has a weight that is no finite number: {name}")
        return values

    def dense(target: str, *sources: str) -> dict[str, np.ndarray]:
        """Keras multiplies by `(inputs, outputs)`, torch by `(outputs, inputs)`; several side by side become one."""
        return {
            f"{target}.weight": np.concatenate([read(f"{source}/kernel").T for source in sources]),
            f"{target}.bias": np.concatenate([read(f"{source}/bias") for source in sources]),
        }

    def norm(target: str, source: str) -> dict[str, np.ndarray]:
        return {f"{target}.weight": read(f"{source}/gamma"), f"{target}.bias": read(f"{source}/beta")}

    weights = {
        "cls_token": read("cls"),
        "pos_embed": read("position"),  # of the class token first, then of the patches row by row: timm's too
        "patch_embed.proj.weight": np.ascontiguousarray(read("patch/kernel").transpose(3, 2, 0, 1)),
        "patch_embed.proj.bias": read("patch/bias"),
        **norm("norm", "norm"),
    }
    for block in range(sizes.depth):
        # Each of query, key and value has its heads one after the other: timm's rows of `qkv`.
        weights |= dense(f"blocks.{block}.attn.qkv", f"{block}/query", f"{block}/key", f"{block}/value")
        weights |= dense(f"blocks.{block}.attn.proj", f"{block}/out")
        weights |= dense(f"blocks.{block}.mlp.fc1", f"{block}/dense0") | dense(
            f"blocks.{block}.mlp.fc2", f"{block}/dense1"
        )
        weights |= norm(f"blocks.{block}.norm1", f"{block}/norm0") | norm(f"blocks.{block}.norm2", f"{block}/norm2")
    names = ("head",) if len(sizes.head_layers) == 1 else ("head.fc1", "head.fc2")
    for name, layer in zip(names, sizes.head_layers, strict=True):
        weights |= dense(name, f"head/{layer}")
    return weights
