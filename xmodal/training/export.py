"""`xmodal export`: a checkpoint → a folder that timm loads, with a model card; to the hub and as ONNX if asked."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx2
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError

import xmodal
from shards.checks import require_folder
from shards.errors import ConfigError, UserError
from shards.json_object import parse_json_object
from shards.view import open_view
from xmodal.students import (
    ONNX_FILE,
    InputSpec,
    StudentConfig,
    create_student,
    export_student,
    first_line,
    input_spec,
    require_replaceable,
)
from xmodal.training import ema
from xmodal.training.checkpoint import COMMIT_FILE, committed_steps, read_commit, read_weights
from xmodal.training.costs import num_parameters
from xmodal.training.engine_state import WEIGHT
from xmodal.training.provenance import last_validation, provenance_of

log = logging.getLogger(__name__)

_GIVE_RUN = "give the `output` folder of `xmodal train`, or a folder in its checkpoints/"
MAX_ONNX_DIFFERENCE = 1e-3
"""Of a logit, where ONNX is allowed another order of sums."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """From a checkpoint to a student."""

    checkpoint: str
    """A run's `output` folder, for its newest checkpoint; or `checkpoints/best`, or `checkpoints/step-…` in it."""
    output: str
    """Folder for the student: a new or an empty one, or that of a student, which is replaced. Any other is refused."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """`ema`: the moving average. `raw`: the weights after the last step. `auto`: the average if there is one."""
    onnx: bool = False
    """Also write `model.onnx`, for any number of pictures, and compare what it says with the student. Needs
    `pip install 'xmodal[onnx]'`."""
    push_to_hub: str = ""
    """Upload the folder to this model repository (`user/name`) of the Hugging Face hub, which is made private if it is
    not there. `HF_TOKEN` in the environment, or `hf auth login`, says who you are."""

    def __post_init__(self) -> None:
        require_folder(self, "output")


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was exported."""

    checkpoint: Path
    step: int
    weights: str
    num_parameters: int
    onnx_difference: float | None
    """Largest difference of a logit between ONNX and torch."""
    url: str
    """On the hub; empty where nothing was uploaded."""


def export(config: ExportConfig) -> ExportSummary:
    """Write the student of a checkpoint to `output`.

    Raises UserError for what is no complete checkpoint of a run, and for an `output` that may not be replaced.
    """
    runtime = _onnx_runtime() if config.onnx else None
    require_replaceable(config.output)
    folder = find_checkpoint(Path(config.checkpoint))
    run = folder.parent.parent
    commit = read_commit(folder, {"stream": dict})
    settings, student_config, has_average = _read_settings(run / "config.json")
    weights = {"auto": "ema" if has_average else "raw"}.get(config.weights, config.weights)
    if weights == "ema" and not has_average:
        raise ConfigError("weights", "ema", "cannot be: the run has kept no moving average (optimizer.ema_decay)")
    model = _load(student_config, folder, commit, weights)
    spec = input_spec(model, student_config.eval_crop_share, student_config.eval_squash)
    fingerprint = commit["stream"]["fingerprint"]
    provenance = provenance_of(
        settings,
        view_fingerprint=fingerprint,
        view=_view_description(settings["view"], fingerprint),
        steps=commit["step"],
        weights=weights,
        validation=last_validation(run, commit["step"]),
    )
    export_student(model, config.output, crop_share=spec.crop_share, squash=spec.squash, provenance=provenance)
    difference = _write_onnx(runtime, model, spec, Path(config.output, ONNX_FILE)) if runtime else None
    return ExportSummary(
        checkpoint=folder,
        step=commit["step"],
        weights=weights,
        num_parameters=num_parameters(model),
        onnx_difference=difference,
        url=_push(config.push_to_hub, config.output) if config.push_to_hub else "",
    )


def find_checkpoint(path: Path) -> Path:
    """The folder of a complete checkpoint that a user means by `path`. Raises UserError if there is none."""
    if path.is_file() and path.name in ("latest", "best"):
        path = path.parent / path.read_text(errors="replace").strip()
    if (path / COMMIT_FILE).is_file():
        return path
    checkpoints = path if path.name == "checkpoints" else path / "checkpoints"
    complete = committed_steps(checkpoints)
    if not complete:
        raise UserError(f"{path}: no complete checkpoint", _GIVE_RUN)
    return checkpoints / complete[-1]


def _read_settings(path: Path) -> tuple[dict[str, Any], StudentConfig, bool]:
    """A run's config as plain values, the student's part of it, and whether the run keeps a moving average."""
    try:
        settings = parse_json_object(path.read_bytes(), str(path), _GIVE_RUN)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}", _GIVE_RUN) from None
    try:
        return settings, StudentConfig(**settings["student"]), bool(settings["optimizer"]["ema_decay"])
    except (TypeError, LookupError) as error:
        raise UserError(
            f"{path}: is no config of a run of xmodal {xmodal.__version__}: {error}",
            "export it with the version that trained it",
        ) from error


def _load(config: StudentConfig, folder: Path, commit: dict[str, Any], weights: str) -> torch.nn.Module:
    model = create_student(replace(config, pretrained=False, gradient_checkpointing=False))
    try:
        model.load_state_dict(read_weights(folder, commit["world_size"], ema.KEY if weights == "ema" else WEIGHT))
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"{folder}: cannot be loaded: {first_line(error)}", "give another checkpoint of the run"
        ) from error
    return model.eval()


def _view_description(url: str, fingerprint: str) -> dict[str, Any] | None:
    """How much the student learned from, if the view is still where it was."""
    try:
        view = open_view(url)
    except UserError as error:
        log.info("the model card will not have the view's counts: %s", error.what)
        return None
    if view.fingerprint != fingerprint:
        log.info("the model card will not have the view's counts: %s is another view now", url)
        return None
    return view.description


def _onnx_runtime() -> Any:
    """The module that runs ONNX. Raises UserError if what torch and we need for it is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UserError(f"onnx: {error.name} is not installed", "pip install 'xmodal[onnx]'") from error
    return onnxruntime


def _write_onnx(runtime: Any, model: torch.nn.Module, spec: InputSpec, path: Path) -> float:
    """Write the model, run it on other numbers of pictures than it was traced with, and return how far it is off."""
    # It tells every node that it simplifies.
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 3, spec.size, spec.size, generator=generator)
    student_is_there = "export without --onnx true; the student itself is there"
    try:
        torch.onnx.export(
            model,
            (pictures[:2],),
            str(path),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except (torch.onnx.OnnxExporterError, OSError) as error:
        path.unlink(missing_ok=True)
        raise UserError(f"onnx: torch cannot write this student: {first_line(error)}", student_is_there) from error
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        differences = [
            torch.from_numpy(session.run(["logits"], {"pixels": batch.numpy()})[0]) - model(batch)
            for batch in (pictures[:1], pictures)
        ]
    # torch's largest of numbers and NaN is NaN, where Python's may be either; and NaN is not within any bound.
    difference = torch.cat(differences).abs().max().item()
    if not difference <= MAX_ONNX_DIFFERENCE:
        path.unlink()
        raise UserError(f"onnx: its logits differ from the student's by up to {difference:.2g}", student_is_there)
    return difference


def _push(name: str, folder: str) -> str:
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Student exported by xmodal")
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise UserError(
            f"push_to_hub: {name}: {api.endpoint} cannot be reached: {first_line(error)}",
            f"see to the network, or to HF_ENDPOINT; the student is in {folder}",
        ) from error
    # What the hub answers, a name that cannot be, and what its client raises where the upload of a large file fails.
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"push_to_hub: {name}: {first_line(error)}",
            f"set HF_TOKEN to a token that may write there; the student is in {folder}",
        ) from error
    return str(repository)
