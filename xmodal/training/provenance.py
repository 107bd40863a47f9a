"""What a student says of where it comes from: plain values, without a path of the machine that trained it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xmodal
from xmodal.training.metrics_file import read_metrics

_PATHS = ("view", "output", "stop_file", "upload", "feature_folder")


def provenance_of(
    config: Mapping[str, Any],
    *,
    view_fingerprint: str,
    view: Mapping[str, Any] | None,
    steps: int,
    weights: str,
    validation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`config` is that of the run, as plain values; `view` what view.json says, if it is there; `weights` is "ema" or
    "raw", `validation` the line of that step's.

    `benchmark` is named where the view's labels are what people said of its pictures.
    """
    view = view or {}
    return {
        "xmodal": xmodal.__version__,
        "view_fingerprint": view_fingerprint,
        "view_counts": view.get("counts"),
        **({"benchmark": view["benchmark"]} if "benchmark" in view else {}),
        "steps": steps,
        "weights": weights,
        "validation": validation,
        "config": settings_without_paths(config),
    }


def settings_without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as others may see them: paths of the machine are left out, or their last name is kept."""
    student = config["student"]
    folder = str(student["model"]).removeprefix("local-dir:")
    settings = {name: value for name, value in config.items() if name not in _PATHS}
    settings |= {
        "deepspeed": Path(config["deepspeed"]).name,
        "student": student | ({"model": Path(folder).name} if folder != student["model"] else {}),
        "stream": {name: value for name, value in config["stream"].items() if name != "cache_folder"},
    }
    return json.loads(json.dumps(settings))  # a config's tuples are lists where it was read from a file


def last_validation(run: Path, step: int) -> dict[str, Any] | None:
    """The newest validation of a run's folder as of `step`; None before the first one."""
    lines = [line for line in read_metrics(run) if line["kind"] == "validation" and line["step"] <= step]
    return lines[-1] if lines else None
