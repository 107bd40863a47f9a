"""Students: timm models with three outputs, made, exported as timm folders, and loaded again.

With the linear head, bare timm loads such a folder. It has no argument for the paper's head of two layers: that folder
says `"head": "mlp"` and `"head_gelu"` in its `config.json`, and `load_student` rebuilds it, while bare timm refuses its
weights. Nor has it a word for pictures that are scaled without antialiasing, as Keras does: `"antialias": false`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_input_data_config
from timm.layers import GELUTanh, Mlp
from timm.models import load_checkpoint, save_for_hf

from shards.augment import Interpolation
from shards.checks import require_range
from shards.errors import ConfigError, UserError
from shards.json_object import parse_json_object
from shards.storage import give_default_permissions, told_to_user
from xmodal.labels import CLASSES
from xmodal.model_card import model_card
from xmodal.published import PUBLISHED, pull_command, pulled_folder, suggestion

PRESETS = {
    "ViT_B32": "vit_base_patch32_224.augreg_in21k",
    "ViT_B16": "vit_base_patch16_224.augreg_in21k",
    "ViT_L32": "vit_large_patch32_224.orig_in21k",
    "ViT_L16": "vit_large_patch16_224.augreg_in21k",
}

MLP_WIDTH = 32
"""Hidden units of the paper's head."""

ONNX_FILE = "model.onnx"
"""Of a student that was written as ONNX too."""
_FILES = frozenset({"config.json", "model.safetensors", "README.md", "provenance.json", ONNX_FILE})
"""All that a student's folder holds."""

Gelu = Literal["exact", "tanh"]
"""GELU by the error function, or approximated by tanh as in the authors' own models."""

# What timm's models raise for arguments and weights that do not fit: each checks, or trips over, them in its own way.
_TIMM_ERRORS = (
    RuntimeError, TypeError, ValueError, AssertionError, OSError, ArithmeticError, LookupError, AttributeError,
    SafetensorError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Which vision model learns."""

    model: str = "ViT_B16"
    """A preset (ViT_B32, ViT_B16, ViT_L32, ViT_L16), any timm name, or `local-dir:FOLDER`."""
    pretrained: bool = True
    """Start from the model's published weights."""
    model_args: dict = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `img_size`, `depth`, `drop_path_rate`. What drop path drops is
    drawn by each rank in each forward pass: on another number of ranks it is something else."""
    head: Literal["linear", "mlp"] = "linear"
    """`mlp`: the paper's, 32 hidden units with GELU; bare timm does not load such a student, xmodal does."""
    eval_crop_share: float | None = None
    """Share of the shorter side that the evaluation crop keeps; by default the model's own (often 0.9)."""
    eval_squash: bool | None = None
    """Evaluate on that share of each side, stretched to a square, not on a square of the picture; by default as the
    model's published weights were."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if {"num_classes", "in_chans"} & set(self.model_args):
            raise ConfigError("model_args", self.model_args, "must not hold num_classes or in_chans: 3 outputs, RGB in")
        if self.eval_crop_share is not None:
            require_range(self, "eval_crop_share", above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What pictures a student takes."""

    size: int
    """Pixels of the square's side."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_share: float
    """Share of the shorter side that the evaluation crop keeps; with `squash`, of each side."""
    squash: bool
    """Whether that crop is stretched to a square."""
    interpolation: Interpolation
    """How it is scaled."""


def create_student(config: StudentConfig) -> torch.nn.Module:
    """A model with three outputs. Raises UserError for a name or arguments that timm does not know."""
    name = PRESETS.get(config.model, config.model)
    try:
        model = _create(name, pretrained=config.pretrained, num_classes=len(CLASSES), **config.model_args)
        if config.head == "mlp" and not has_mlp_head(model):
            put_mlp_head(model)
        elif config.head == "linear" and has_mlp_head(model):
            raise ValueError("this student has the head of two layers; set student.head=mlp")
        if config.gradient_checkpointing:
            model.set_grad_checkpointing(True)
    except _TIMM_ERRORS as error:
        raise UserError(
            f"student.model: {config.model} with {config.model_args}: {first_line(error)}",
            "see timm.list_models() for names; set student.pretrained=false where no weights can be had",
        ) from error
    return model


def _create(name: str, *, pretrained: bool, **arguments: Any) -> Any:
    """`timm.create_model`, which also makes a student as its folder has it where timm has no word for that."""
    folder = Path(name.removeprefix("local-dir:"))
    path = folder / "config.json"
    config = json.loads(path.read_bytes()) if name.startswith("local-dir:") and path.is_file() else {}
    antialias = config.get("antialias", True)
    if not isinstance(antialias, bool):
        raise ValueError(f"{path}: antialias: {antialias!r} is neither true nor false")
    gelu = _mlp_gelu(config, path)
    if gelu is None:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    else:
        model = timm.create_model(name, pretrained=False, **arguments)
        put_mlp_head(model, gelu)
        if pretrained:
            load_checkpoint(model, str(folder / "model.safetensors"))
    if not antialias:
        scale_without_antialiasing(model)
    return model


def _mlp_gelu(config: Mapping[str, Any], path: Path) -> Gelu | None:
    """Which GELU the paper's head of an exported student has, by its `config.json`; None if it has another head."""
    if config.get("head") != "mlp":
        return None
    gelu = config.get("head_gelu", "exact")
    if gelu not in get_args(Gelu):
        raise ValueError(f"{path}: head_gelu: {gelu!r} is none of {', '.join(get_args(Gelu))}")
    return cast(Gelu, gelu)


def scale_without_antialiasing(model: torch.nn.Module) -> None:
    """Have a model of bilinear pictures take those of `tf.image.resize`; its `input_spec` and its export say so."""
    # Not in its pretrained_cfg, where timm would write it to a config.json that it then refuses to read.
    cast(Any, model).antialias = False


def _is_antialiased(model: torch.nn.Module) -> bool:
    return getattr(model, "antialias", True)


def put_mlp_head(model: torch.nn.Module, gelu: Gelu = "exact") -> None:
    """Replace a timm model's linear classifier by the paper's: 32 hidden units, GELU, three outputs."""
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(linear := heads[0], torch.nn.Linear):
        raise ValueError("head: mlp needs a model whose classifier is one linear layer")
    name = cast(dict[str, Any], model.pretrained_cfg)["classifier"]
    activation = GELUTanh if gelu == "tanh" else torch.nn.GELU
    model.set_submodule(name, Mlp(linear.in_features, MLP_WIDTH, len(CLASSES), act_layer=activation))


def has_mlp_head(model: torch.nn.Module) -> bool:
    """Whether a student has the paper's head, which bare timm does not load."""
    return any(isinstance(head, Mlp) for head in classifiers(model))


def classifiers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The head of a timm model, what follows the backbone's features; a few models have two."""
    names = cast(dict[str, Any], model.pretrained_cfg).get("classifier") or ()
    return [model.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]


def load_student(folder: str) -> torch.nn.Module:
    """A student as `export_student` wrote it, on the CPU, in evaluation mode.

    `folder` may be the name of one of the paper's models (`xmodal.published`) that was pulled; a folder of that name
    comes first. Raises UserError if it is no student.
    """
    folder = student_folder(folder)
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json, so this is no student", "train one first, or check the path")
    labels = parse_json_object(path.read_bytes(), str(path), "export the student again").get("label_names")
    if labels != list(CLASSES):
        raise UserError(
            f"{folder}/config.json: label_names: {labels} are not {list(CLASSES)}",
            "give a student that xmodal exported",
        )
    try:
        return _create(f"local-dir:{folder}", pretrained=True).eval()
    except _TIMM_ERRORS as error:
        raise UserError(f"{folder}: cannot be loaded: {first_line(error)}", "export the student again") from error


def student_fingerprint(student: torch.nn.Module) -> str:
    """sha256 (hex) of a student's weights, and of what pictures it takes."""
    hashing = hashlib.sha256(repr(input_spec(student)).encode())
    for name, tensor in sorted(student.state_dict().items()):
        hashing.update(name.encode())
        hashing.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashing.hexdigest()


def student_folder(folder: str) -> str:
    """The folder that is meant by a folder, or by the name of a published model.

    Raises UserError for a name that is none of those, or of a model that was not pulled.
    """
    if os.path.lexists(folder) or "/" in folder:
        return folder
    if folder not in PUBLISHED:
        raise UserError(f"{folder}: no such folder, and none of the paper's models", suggestion(folder))
    pulled = pulled_folder(folder)
    if not pulled.is_dir():
        raise UserError(f"{folder}: this model of the paper is not on this machine", pull_command(folder))
    return str(pulled)


def input_spec(model: torch.nn.Module, crop_share: float | None = None, squash: bool | None = None) -> InputSpec:
    """What pictures a model takes, by its own configuration; `crop_share` and `squash` override that of the model.

    Raises UserError for an interpolation that is not at hand.
    """
    # resolve_model_data_config would give the published weights' size, not that of the model as it was made.
    resolved = resolve_input_data_config(model=model, pretrained_cfg=model.pretrained_cfg)
    return InputSpec(
        size=resolved["input_size"][-1],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        crop_share=crop_share or resolved["crop_pct"],
        squash=resolved["crop_mode"] == "squash" if squash is None else squash,
        interpolation=_interpolation(resolved["interpolation"], _is_antialiased(model)),
    )


def require_replaceable(folder: str) -> Path:
    """Where a student for `folder` is written: links followed, and what lies there may go.

    That is a folder that is new or empty, or one of a student that we wrote, with nothing else in it. Raises UserError
    for any other, such as that of a run, for a file, and for the folder that this process works in.
    """
    target = Path(os.path.realpath(folder))
    try:
        names = sorted(os.listdir(target))
        is_student = not names or _says_labels(target / "config.json")
    except FileNotFoundError:
        return target
    except NotADirectoryError:
        raise UserError(f"{folder}: is no folder", "give a new or an empty folder, or that of a student") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}", "see to its permissions") from error
    foreign = [name for name in names if name not in _FILES or not (target / name).is_file()]
    if foreign or not is_student:
        why = f"holds {foreign[0]}" if foreign else "has no config.json of a student"
        raise UserError(
            f"{folder}: {why}, so it is no student that another one could replace",
            "give a new or an empty folder, or that of a student",
        )
    if target == Path.cwd():
        raise UserError(
            f"{folder}: is the folder that this command runs in, so it cannot be replaced", "give another folder"
        )
    return target


def _says_labels(path: Path) -> bool:
    """Whether this is the `config.json` of a student."""
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(config, dict) and config.get("label_names") == list(CLASSES)


def _interpolation(name: str, antialias: bool) -> Interpolation:
    """By timm's name for it; `random` is bilinear in evaluation, as timm has it."""
    known: dict[tuple[str, bool], Interpolation] = {
        ("bicubic", True): "bicubic",
        ("bilinear", True): "bilinear",
        ("random", True): "bilinear",
        ("bilinear", False): "aliased_bilinear",
    }
    if (name, antialias) not in known:
        how = name if antialias else f"{name} without antialiasing"
        raise UserError(
            f"student: its pictures are to be scaled by {how}, which xmodal does not do",
            "set pretrained_cfg.interpolation in its config.json, or model_args.pretrained_cfg_overlay, to bilinear",
        )
    return known[name, antialias]


def export_student(
    model: torch.nn.Module, folder: str, *, crop_share: float, squash: bool = False, provenance: Mapping[str, Any]
) -> None:
    """Write `config.json`, `model.safetensors`, `README.md` (model card) and `provenance.json`.

    The folder is never seen half written; a student that was there is moved aside first. Bare timm loads that of a
    student with the linear head: `timm.create_model("local-dir:FOLDER", pretrained=True)`; `load_student` loads all.

    Raises UserError for a folder that holds something else (`require_replaceable`), and where it cannot be written.
    """
    target = require_replaceable(folder)
    with told_to_user(folder, every=(OSError, SafetensorError)):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
        try:
            _write_student(model, staged, crop_share=crop_share, squash=squash, provenance=provenance)
            retired = target.with_name(f".tmp-{target.name}-retired")
            shutil.rmtree(retired, ignore_errors=True)
            if target.exists():
                os.rename(target, retired)
            os.rename(staged, target)
            shutil.rmtree(retired, ignore_errors=True)
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # gigabytes that nobody would look for


def _write_student(
    model: torch.nn.Module, folder: Path, *, crop_share: float, squash: bool, provenance: Mapping[str, Any]
) -> None:
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(CLASSES), **_head_config(model), "antialias": _is_antialiased(model)},
        safe_serialization=True,
        data_config={"crop_pct": crop_share, "crop_mode": "squash" if squash else "center"},
    )
    give_default_permissions(folder / "model.safetensors")
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    (folder / "README.md").write_text(_model_card(model, provenance))
    folder.chmod(0o755)


def _head_config(model: torch.nn.Module) -> dict[str, str]:
    """What `config.json` says of a student's head."""
    for head in classifiers(model):
        if isinstance(head, Mlp):
            return {"head": "mlp", "head_gelu": "tanh" if isinstance(head.act, GELUTanh) else "exact"}
    return {"head": "linear"}


def _model_card(model: torch.nn.Module, provenance: Mapping[str, Any]) -> str:
    if has_mlp_head(model):
        head, loading = f"two layers, {MLP_WIDTH} hidden units (bare timm cannot load them)", _LOAD_BY_XMODAL
    else:
        head, loading = "linear", _LOAD_BY_TIMM
    return model_card(
        architecture=cast(dict[str, Any], model.pretrained_cfg)["architecture"],
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=head,
        size=input_spec(model).size,
        loading=loading,
        provenance=provenance,
    )


_LOAD_BY_TIMM = """import timm
model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()"""
_LOAD_BY_XMODAL = """from xmodal.students import load_student
model = load_student("PATH_OF_THIS_FOLDER")"""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
