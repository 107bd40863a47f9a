"""A vit-keras student in an HDF5 file → its weights by timm's names.

Keras writes three layouts: whole models (`model.save("m.h5")`: the layers as JSON and the weights under
`model_weights`), weights alone (`save_weights("m.h5")`: the same groups at the root), and the newer weights alone
(`save_weights("m.weights.h5")`: numbered variables under `layers`). All three are read here, of Keras 2 and 3.

Such files come from strangers. Nothing in them is executed, not even what Keras itself would unpickle: the JSON is read
as JSON, the weights as arrays of floats, and whatever a vit-keras student does not have is an error.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from shards.errors import UserError
from xmodal.labels import CLASSES
from xmodal.students import MLP_WIDTH, Gelu

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What h5py raises for files that are damaged: HDF5's own errors come as any of these.
_HDF5_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

_MAX_GROUP_DEPTH = 16
_MAX_OBJECTS = 20_000
_MAX_PATH = 500
_MAX_CONFIG_BYTES = 1 << 24
_HEAD_DIM = 64
"""Dimensions of one attention head of every ViT of vit-keras; a file of weights alone does not say."""


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


class _UnfitError(Exception):
    """Why a file is no student of vit-keras."""


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
    except _UnfitError as error:
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
    architecture = None if config is None else _architecture(config)
    root = file
    if architecture or "model_weights" in file:
        # A link would lead into another file of whoever converts.
        is_here = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
        root = file["model_weights"] if is_here else None
    if not isinstance(root, h5py.Group):
        raise _UnfitError("model_weights is no group of its own")
    found = dict(_weights(root))
    sizes = _dimensions(found, architecture)
    _check_shapes(found, sizes)
    if sum(dataset.nbytes for dataset in found.values()) > num_bytes:
        raise _UnfitError("holds less than its weights would take")  # a few bytes that claim to be gigabytes of zeros
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


# --- the layers, of whole models -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What the JSON of a whole model says that its weights do not."""

    num_heads: int
    head_gelu: Gelu | None


_BODY = ("Conv2D", "Reshape", "ClassToken", "AddPositionEmbs")


def _architecture(config: Any) -> _Architecture:
    """Check that a model's JSON is that of a vit-keras student, layer by layer."""
    text = config.decode() if isinstance(config, bytes) else config
    if not isinstance(text, str) or len(text) > _MAX_CONFIG_BYTES:
        raise _UnfitError("its model_config is no text of a sensible length")
    try:
        layers = list(_layers(json.loads(text)))
    except RecursionError as error:
        raise _UnfitError("its model_config is nested too deeply") from error
    for kind, settings in layers:
        if kind == "Lambda":
            _check_lambda(settings)
    kinds = [kind for kind, _ in layers]
    depth = kinds.count("TransformerBlock")
    body = [*_BODY, *["TransformerBlock"] * depth, "LayerNormalization", "Lambda"]
    head = kinds[len(body) :]
    if kinds[: len(body)] != body or not depth or head not in (["Dense"], ["Dense", "Dense"]):
        odd = next((kind for kind in kinds if kind not in {*body, "Dense"}), None)
        raise _UnfitError(f"has a layer that vit-keras's ViTs lack: {odd}" if odd else "its layers are no ViT's")
    settings_of_blocks = [settings for kind, settings in layers if kind == "TransformerBlock"]
    (num_heads,) = _the_only({settings.get("num_heads") for settings in settings_of_blocks}, "num_heads")
    (epsilon,) = _the_only({layers[len(body) - 2][1].get("epsilon")}, "epsilon")
    if type(num_heads) is not int or num_heads < 1:  # not True, which is an int too
        raise _UnfitError(f"num_heads: {num_heads!r} is no number of heads")
    if epsilon != 1e-6:
        raise _UnfitError(f"its last LayerNormalization has epsilon {epsilon}, where vit-keras's have 1e-06")
    *before, last = (_activation(settings.get("activation")) for _, settings in layers[len(body) :])
    if last not in ("softmax", "linear"):
        raise _UnfitError(f"its outputs have the activation {last}, not softmax")
    if before and before[0] not in _GELUS:
        raise _UnfitError(f"its head has the activation {before[0]}, not GELU")
    return _Architecture(num_heads=num_heads, head_gelu=_GELUS[before[0]] if before else None)


_GELUS: dict[str, Gelu] = {"gelu": "exact", "Addons>gelu": "tanh"}
"""Keras's own is exact by default; that of tensorflow_addons, which the authors' scripts name, approximates by tanh."""


def _layers(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and settings of each layer, of the models within a model too; those that do nothing are left out."""
    if not isinstance(config, dict) or not isinstance(settings := config.get("config"), dict):
        raise _UnfitError("its model_config is none")
    kind = str(config.get("class_name")).removeprefix("Custom>")
    if kind in ("Sequential", "Functional", "Model"):
        inner = settings.get("layers")
        if not isinstance(inner, list):
            raise _UnfitError("its model_config is none")
        for layer in inner:
            yield from _layers(layer)
    elif kind not in ("InputLayer", "Dropout"):
        yield kind, settings


def _activation(value: Any) -> str:
    """An activation's name; Keras also writes it as the description of a function."""
    if isinstance(value, dict):
        value = value.get("config")
    return value if isinstance(value, str) else "of an unknown kind"


def _the_only(values: set[Any], name: str) -> set[Any]:
    if len(values) != 1:
        raise _UnfitError(f"its blocks differ in {name}")
    return values


def _check_lambda(settings: Mapping[str, Any]) -> None:
    """Refuse every Lambda but vit-keras's own, which takes the class token: `lambda v: v[:, 0]`.

    Keras would run its code. Here nothing does, and only code that could do nothing is let pass: a function needs names
    to call anything by, and this one has none but its argument's and those of the places it comes from.
    """
    function = settings.get("function")
    if isinstance(function, dict):  # Keras 3
        inner = function.get("config")
        code = inner.get("code") if isinstance(inner, dict) else None
    else:  # Keras 2: code, defaults, closure
        code = function[0] if isinstance(function, list) and function else None
    # The shape of its output may be code as well.
    if settings.get("name") != "ExtractToken" or settings.get("output_shape") or not isinstance(code, str):
        raise _UnfitError("has a Lambda layer, which is code to be executed")
    try:
        compiled = base64.b64decode(code)
    except (binascii.Error, ValueError) as error:
        raise _UnfitError("has a Lambda layer whose code is none") from error
    for text in re.findall(rb"[\x20-\x7e]{4,}", compiled):
        if not re.fullmatch(rb".{0,2}[^()]*(?:<lambda>|[/\\][\w.-]+\.py).{0,2}", text):
            raise _UnfitError("has a Lambda layer whose code is not that of vit-keras's ExtractToken")


# --- the weights -----------------------------------------------------------------------------------------------------

# Names in files → ours: the layer, then its variable. First the layouts with names, then the one with numbers; what
# fits none of them is an error. vit-keras calls its layers by slashes up to 0.1, by underscores since.
_BLOCK = r"Transformer[/_]encoderblock_(\d+)/(?:.*[/_])?"
_KERNEL: dict[str, str] = {"0": "kernel", "1": "bias"}
_GAMMA: dict[str, str] = {"0": "gamma", "1": "beta"}
_NAMED: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"(?:^|.*/)embedding/(kernel|bias)", "patch/{}".format),
    (r"(?:^|.*/)cls", "cls".format),
    (r"(?:^|.*/)pos_embedding", "position".format),
    (rf".*?{_BLOCK}(query|key|value|out)/(kernel|bias)", "{}/{}/{}".format),
    (rf".*?{_BLOCK}LayerNorm_([02])/(gamma|beta)", "{}/norm{}/{}".format),
    (rf".*?{_BLOCK}Dense_([01])/(kernel|bias)", "{}/dense{}/{}".format),
    (r".*Transformer[/_]encoder_norm/(gamma|beta)", "norm/{}".format),
    (r"(?!.*(?:encoderblock|pre_logits))(?:^|.*/)([^/]+)/(kernel|bias)", "head/{}/{}".format),
)
_NUMBERED: tuple[tuple[str, Callable[..., str]], ...] = (
    (r".*/conv2d(?:_\d+)?/vars/([01])", lambda number: f"patch/{_KERNEL[number]}"),
    (r".*/class_token(?:_\d+)?/vars/0", "cls".format),
    (r".*/add_position_embs(?:_\d+)?/vars/0", "position".format),
    (
        r".*/transformer_block(?:_(\d+))?/att/(query|key|value|combine)_(?:dense|heads)/vars/([01])",
        lambda block, part, number: f"{block or 0}/{part.replace('combine', 'out')}/{_KERNEL[number]}",
    ),
    (
        r".*/transformer_block(?:_(\d+))?/layernorm([12])/vars/([01])",
        lambda block, which, number: f"{block or 0}/norm{2 * int(which) - 2}/{_GAMMA[number]}",
    ),
    (
        r".*/transformer_block(?:_(\d+))?/mlpblock/layers/dense(?:_(1))?/vars/([01])",
        lambda block, which, number: f"{block or 0}/dense{which or 0}/{_KERNEL[number]}",
    ),
    (r".*/layer_normalization(?:_\d+)?/vars/([01])", lambda number: f"norm/{_GAMMA[number]}"),
    (r"/layers/(dense(?:_\d+)?)/vars/([01])", lambda name, number: f"head/{name}/{_KERNEL[number]}"),
)


def _weights(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Our name and the dataset of each weight below a group."""
    seen = set()
    for path, dataset in _datasets(root):
        if path.startswith("/optimizer/") or "/seed_generator/" in path:
            continue  # of training, not of the model
        name = _name_of(path)
        if name is None:
            raise _UnfitError(f"has a weight that students lack: {path[1:]}")
        if name in seen:
            raise _UnfitError(f"has a weight twice: {path[1:]}")
        if dataset.dtype.kind != "f":
            raise _UnfitError(f"has a weight that is no number: {path[1:]}")
        seen.add(name)
        yield name, dataset


def _name_of(path: str) -> str | None:
    table = _NUMBERED if "/vars/" in path else _NAMED
    text = path if table is _NUMBERED else path[1:].removesuffix(":0")
    for pattern, named in table:
        if match := re.fullmatch(pattern, text):
            return named(*match.groups())
    return None


def _datasets(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Path and dataset of all below a group. What lies in other files, or twice in this one, is refused."""
    waiting: list[tuple[str, h5py.Group]] = [("", root)]
    num_objects = 0
    while waiting:
        path, group = waiting.pop()
        for name in group:
            num_objects += 1
            if num_objects > _MAX_OBJECTS or path.count("/") > _MAX_GROUP_DEPTH:
                raise _UnfitError("has more in it than a ViT")
            # A link out of the file would read another file of whoever converts.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _UnfitError(f"has a link to elsewhere: {path}/{name}")
            if len(path) + len(name) > _MAX_PATH:
                raise _UnfitError("has names longer than any of a ViT")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/{name}", item))
                continue
            if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise _UnfitError(f"has its weights elsewhere: {path}/{name}")
            yield f"{path}/{name}", item


@dataclass(frozen=True, kw_only=True)
class _Dimensions:
    patch_size: int
    image_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    head_layers: tuple[str, ...]
    """Names of the head's layers, first to last."""


def _dimensions(found: Mapping[str, h5py.Dataset], architecture: _Architecture | None) -> _Dimensions:
    def shape(name: str, num_dimensions: int) -> tuple[int, ...]:
        if name not in found:
            raise _UnfitError(f"lacks a weight of a ViT: {name}" if found else "has no weights of a ViT")
        if len(found[name].shape) != num_dimensions or 0 in found[name].shape:
            raise _UnfitError(f"{name} has the shape {found[name].shape}")
        return found[name].shape

    patch_size, _, _, width = shape("patch/kernel", 4)
    num_patches = shape("position", 3)[1] - 1
    side = math.isqrt(num_patches)
    if not side or side * side != num_patches:
        raise _UnfitError(f"takes pictures that are no squares: {num_patches} patches")
    mlp_width = shape("0/dense0/kernel", 2)[1]
    depth = len({name.split("/")[0] for name in found if name[0].isdigit()})
    if not architecture and width % _HEAD_DIM:
        raise _UnfitError(f"{width} dimensions are no multiple of {_HEAD_DIM}: how many heads there are is not known")
    num_heads = architecture.num_heads if architecture else width // _HEAD_DIM
    if width % num_heads:
        raise _UnfitError(f"{width} dimensions cannot be cut into {num_heads} heads")
    outputs: list[str] = []
    hidden: list[str] = []
    for layer in {name.split("/")[1] for name in found if name.startswith("head/")}:
        (outputs if shape(f"head/{layer}/kernel", 2)[1] == len(CLASSES) else hidden).append(layer)
    if len(outputs) != 1 or len(hidden) > 1:
        raise _UnfitError(f"has no head of one or two layers with {len(CLASSES)} outputs")
    return _Dimensions(
        patch_size=patch_size,
        image_size=side * patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width,
        head_layers=(*hidden, *outputs),
    )


def _check_shapes(found: Mapping[str, h5py.Dataset], sizes: _Dimensions) -> None:
    """That all weights of a ViT of these sizes are there, each of its shape, before any is read."""
    width = sizes.width
    expected: dict[str, tuple[int, ...]] = {
        "patch/kernel": (sizes.patch_size, sizes.patch_size, 3, width),
        "patch/bias": (width,),
        "cls": (1, 1, width),
        "position": (1, (sizes.image_size // sizes.patch_size) ** 2 + 1, width),
        "norm/gamma": (width,),
        "norm/beta": (width,),
    }
    for block in range(sizes.depth):
        for part in ("query", "key", "value", "out"):
            expected |= _dense(f"{block}/{part}", width, width)
        expected |= _dense(f"{block}/dense0", width, sizes.mlp_width) | _dense(
            f"{block}/dense1", sizes.mlp_width, width
        )
        for norm in ("norm0", "norm2"):
            expected |= {f"{block}/{norm}/gamma": (width,), f"{block}/{norm}/beta": (width,)}
    inputs = width
    for layer, outputs in zip(sizes.head_layers, (MLP_WIDTH, len(CLASSES))[-len(sizes.head_layers) :], strict=True):
        expected |= _dense(f"head/{layer}", inputs, outputs)
        inputs = outputs
    for name in expected.keys() ^ found.keys():
        raise _UnfitError(f"{'lacks a weight of a ViT' if name in expected else 'has a weight too many'}: {name}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise _UnfitError(f"{name} has the shape {found[name].shape}, not {shape}")


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


# --- Keras's layouts → timm's ----------------------------------------------------------------------------------------


def _timm_weights(found: Mapping[str, h5py.Dataset], sizes: _Dimensions) -> dict[str, np.ndarray]:
    def read(name: str) -> np.ndarray:
        values = found[name].astype(np.float32)[()]
        if not np.isfinite(values).all():
            raise _UnfitError(f"has a weight that is no finite number: {name}")
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
