"""The layers of a whole Keras model, as its JSON describes them: those of a vit-keras student, or an error."""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xmodal.students import Gelu

_MAX_CONFIG_BYTES = 1 << 24


class NoStudentError(Exception):
    """Why a file is no student of vit-keras."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the JSON of a whole model says that its weights do not."""

    num_heads: int
    head_gelu: Gelu | None


_BODY = ("Conv2D", "Reshape", "ClassToken", "AddPositionEmbs")


def read_architecture(config: Any) -> Architecture:
    """Check that a model's JSON is that of a vit-keras student, layer by layer. Raises NoStudentError if it is not."""
    text = config.decode() if isinstance(config, bytes) else config
    if not isinstance(text, str) or len(text) > _MAX_CONFIG_BYTES:
        raise NoStudentError("its model_config is no text of a sensible length")
    try:
        layers = list(_layers(json.loads(text)))
    except RecursionError as error:
        raise NoStudentError("its model_config is nested too deeply") from error
    for kind, settings in layers:
        if kind == "Lambda":
            _check_lambda(settings)
    kinds = [kind for kind, _ in layers]
    depth = kinds.count("TransformerBlock")
    body = [*_BODY, *["TransformerBlock"] * depth, "LayerNormalization", "Lambda"]
    head = kinds[len(body) :]
    if kinds[: len(body)] != body or not depth or head not in (["Dense"], ["Dense", "Dense"]):
        odd = next((kind for kind in kinds if kind not in {*body, "Dense"}), None)
        raise NoStudentError(f"has a layer that vit-keras's ViTs lack: {odd}" if odd else "its layers are no ViT's")
    settings_of_blocks = [settings for kind, settings in layers if kind == "TransformerBlock"]
    (num_heads,) = _the_only({settings.get("num_heads") for settings in settings_of_blocks}, "num_heads")
    (epsilon,) = _the_only({layers[len(body) - 2][1].get("epsilon")}, "epsilon")
    if type(num_heads) is not int or num_heads < 1:  # not True, which is an int too
        raise NoStudentError(f"num_heads: {num_heads!r} is no number of heads")
    if epsilon != 1e-6:
        raise NoStudentError(f"its last LayerNormalization has epsilon {epsilon}, where vit-keras's have 1e-06")
    *before, last = (_activation(settings.get("activation")) for _, settings in layers[len(body) :])
    if last not in ("softmax", "linear"):
        raise NoStudentError(f"its outputs have the activation {last}, not softmax")
    if before and before[0] not in _GELUS:
        raise NoStudentError(f"its head has the activation {before[0]}, not GELU")
    return Architecture(num_heads=num_heads, head_gelu=_GELUS[before[0]] if before else None)


_GELUS: dict[str, Gelu] = {"gelu": "exact", "Addons>gelu": "tanh"}
"""Keras's own is exact by default; that of tensorflow_addons, which the authors' scripts name, approximates by tanh."""


def _layers(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and settings of each layer, of the models within a model too; those that do nothing are left out."""
    if not isinstance(config, dict) or not isinstance(settings := config.get("config"), dict):
        raise NoStudentError("its model_config is none")
    kind = str(config.get("class_name")).removeprefix("Custom>")
    if kind in ("Sequential", "Functional", "Model"):
        inner = settings.get("layers")
        if not isinstance(inner, list):
            raise NoStudentError("its model_config is none")
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
        raise NoStudentError(f"its blocks differ in {name}")
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
        raise NoStudentError("has a Lambda layer, which is code to be executed")
    try:
        compiled = base64.b64decode(code)
    except (binascii.Error, ValueError) as error:
        raise NoStudentError("has a Lambda layer whose code is none") from error
    for text in re.findall(rb"[\x20-\x7e]{4,}", compiled):
        if not re.fullmatch(rb".{0,2}[^()]*(?:<lambda>|[/\\][\w.-]+\.py).{0,2}", text):
            raise NoStudentError("has a Lambda layer whose code is not that of vit-keras's ExtractToken")
