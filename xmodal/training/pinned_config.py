"""The config (a dataclass) that a run was begun with, and that it is resumed with, as far as it shapes the result."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LocalStorage

MAY_CHANGE = {
    "output", "view",  # they may have been moved: it is the view's fingerprint that must be the same
    "deepspeed", "max_steps", "micro_batch_size", "log_every_steps", "checkpoint_every_epochs", "keep_checkpoints",
    "checkpoint_every_steps", "keep_every_steps", "stop_file", "max_skipped_steps", "step_timeout", "peer_timeout",
    "peak_tflops", "trackers", "wandb_project", "upload", "upload_grace", "allow_forgotten", "compile",
    "feature_folder",
    "student.gradient_checkpointing", "stream.num_workers", "stream.max_damaged_share",
    "stream.cache_folder", "stream.max_cache_gib",
}  # fmt: skip
"""Settings of `TrainConfig` that do not shape the student, or (`micro_batch_size`) no more than another number of ranks
does: a run may be resumed with others."""


def check_pinned_config(folder: Path, config: Any, may_change: Collection[str] = MAY_CHANGE) -> None:
    """Raise UserError if a setting is not what the run in this folder was begun with; a few, by their dotted names, may
    change.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    pinned = parse_json_object(path.read_bytes(), str(path), "give a new `output` folder")
    begun_with = dict(dotted(pinned))
    for name, value in dotted(json.loads(json.dumps(asdict(config)))):
        if name not in may_change and begun_with.get(name) != value:
            raise UserError(
                f"{path}: {name}: this run was begun with {begun_with.get(name)!r}, not {value!r}",
                "go on with the settings it was begun with, or give a new `output` folder",
            )


def pin_config(folder: Path, config: Any) -> None:
    """Keep the config of a run that begins: once everything that it names was found to be there."""
    LocalStorage(folder, create=True).replace("config.json", json.dumps(asdict(config), indent=2).encode() + b"\n")


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config by their dotted names; `model_args` and other free-form ones are whole."""
    for name, value in values.items():
        if isinstance(value, dict) and name != "model_args":
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
