"""The weights in a Keras file: found under the names of all its layouts, measured and checked before any is read."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import h5py

from xmodal.labels import CLASSES
from xmodal.models.keras_layers import Architecture, NoStudentError
from xmodal.students import MLP_WIDTH

_MAX_GROUP_DEPTH = 16
_MAX_OBJECTS = 20_000
_MAX_PATH = 500
_HEAD_DIM = 64
"""Dimensions of one attention head of every ViT of vit-keras; a file of weights alone does not say."""

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


def named_weights(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Our name and the dataset of each weight below a group. Raises NoStudentError for one that students lack."""
    seen = set()
    for path, dataset in _datasets(root):
        if path.startswith("/optimizer/") or "/seed_generator/" in path:
            continue  # of training, not of the model
        name = _name_of(path)
        if name is None:
            raise NoStudentError(f"has a weight that students lack: {path[1:]}")
        if name in seen:
            raise NoStudentError(f"has a weight twice: {path[1:]}")
        if dataset.dtype.kind != "f":
            raise NoStudentError(f"has a weight that is no number: {path[1:]}")
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
                raise NoStudentError("has more in it than a ViT")
            # A link out of the file would read another file of whoever converts.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise NoStudentError(f"has a link to elsewhere: {path}/{name}")
            if len(path) + len(name) > _MAX_PATH:
                raise NoStudentError("has names longer than any of a ViT")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/{name}", item))
                continue
            if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise NoStudentError(f"has its weights elsewhere: {path}/{name}")
            yield f"{path}/{name}", item


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Sizes of a ViT, by the shapes of its weights."""

    patch_size: int
    image_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    head_layers: tuple[str, ...]
    """Names of the head's layers, first to last."""


def read_dimensions(found: Mapping[str, h5py.Dataset], architecture: Architecture | None) -> Dimensions:
    """What the shapes of a file's weights say. Raises NoStudentError where they are no ViT's with three outputs."""

    def shape(name: str, num_dimensions: int) -> tuple[int, ...]:
        if name not in found:
            raise NoStudentError(f"lacks a weight of a ViT: {name}" if found else "has no weights of a ViT")
        if len(found[name].shape) != num_dimensions or 0 in found[name].shape:
            raise NoStudentError(f"{name} has the shape {found[name].shape}")
        return found[name].shape

    patch_size, _, _, width = shape("patch/kernel", 4)
    num_patches = shape("position", 3)[1] - 1
    side = math.isqrt(num_patches)
    if not side or side * side != num_patches:
        raise NoStudentError(f"takes pictures that are no squares: {num_patches} patches")
    mlp_width = shape("0/dense0/kernel", 2)[1]
    depth = len({name.split("/")[0] for name in found if name[0].isdigit()})
    if not architecture and width % _HEAD_DIM:
        raise NoStudentError(
            f"{width} dimensions are no multiple of {_HEAD_DIM}: how many heads there are is not known"
        )
    num_heads = architecture.num_heads if architecture else width // _HEAD_DIM
    if width % num_heads:
        raise NoStudentError(f"{width} dimensions cannot be cut into {num_heads} heads")
    outputs: list[str] = []
    hidden: list[str] = []
    for layer in {name.split("/")[1] for name in found if name.startswith("head/")}:
        (outputs if shape(f"head/{layer}/kernel", 2)[1] == len(CLASSES) else hidden).append(layer)
    if len(outputs) != 1 or len(hidden) > 1:
        raise NoStudentError(f"has no head of one or two layers with {len(CLASSES)} outputs")
    return Dimensions(
        patch_size=patch_size,
        image_size=side * patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width,
        head_layers=(*hidden, *outputs),
    )


def check_shapes(found: Mapping[str, h5py.Dataset], sizes: Dimensions) -> None:
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
        raise NoStudentError(f"{'lacks a weight of a ViT' if name in expected else 'has a weight too many'}: {name}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise NoStudentError(f"{name} has the shape {found[name].shape}, not {shape}")


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}
