"""The student that a run has trained so far: as it is validated, and as it is exported at the end."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from shards.view import View
from xmodal.students import InputSpec, StudentConfig, create_student, export_student
from xmodal.training import ema
from xmodal.training.checkpoint import read_best_weights
from xmodal.training.config import TrainConfig
from xmodal.training.engine import full_averaged_weights
from xmodal.training.engine_state import WEIGHT
from xmodal.training.mistakes import by_first
from xmodal.training.provenance import last_validation, provenance_of

log = logging.getLogger(__name__)


def averaged_student(engine: Any, config: StudentConfig) -> torch.nn.Module:
    """The moving average, whole on each rank, in the precision that is trained in; all ranks call it."""
    dtype = next(engine.module.parameters()).dtype
    return _student(config, full_averaged_weights(engine)).to(engine.device, dtype)


def export_trained(engine: Any, config: TrainConfig, view: View, spec: InputSpec, *, step: int) -> None:
    """Write the student of a run that is at its last `step` to `<output>/student`; all ranks call it.

    It is that of the last step or of the best checkpoint, as the config's `select` has it. Raises UserError on all
    ranks where no checkpoint was validated, the best one is damaged, or the folder cannot be written.
    """
    last = full_averaged_weights(engine) if config.select == "last" else None
    by_first(lambda: _export(last, config, view, spec, step))


def _export(
    weights: dict[str, torch.Tensor] | None, config: TrainConfig, view: View, spec: InputSpec, step: int
) -> None:
    """Those `weights`, of that step, or of the best checkpoint."""
    folder = Path(config.output)
    has_average = bool(config.optimizer.ema_decay)
    if weights is None:
        weights, step = read_best_weights(folder / "checkpoints", ema.KEY if has_average else WEIGHT)
    provenance = provenance_of(
        asdict(config),
        view_fingerprint=view.fingerprint,
        view=view.description,
        steps=step,
        weights="ema" if has_average else "raw",
        validation=last_validation(folder, step),
    )
    export_student(
        _student(config.student, weights),
        str(folder / "student"),
        crop_share=spec.crop_share,
        squash=spec.squash,
        provenance=provenance,
    )
    log.info("student of step %d exported to %s", step, folder / "student")


def _student(config: StudentConfig, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = create_student(replace(config, pretrained=False))
    model.load_state_dict(weights)
    return model
