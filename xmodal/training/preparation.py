"""What a run is made of before its engine: the same for a run that trains and for one that is tried (`--dry-run`)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.storage import check_can_be_made
from shards.stream import TrainStream
from shards.view import View, open_view, target_array
from xmodal.curation.forgotten import refuse_forgotten
from xmodal.students import InputSpec, create_student, input_spec, require_replaceable
from xmodal.training.checkpoint import committed_steps
from xmodal.training.config import TrainConfig
from xmodal.training.costs import device_peak
from xmodal.training.engine import create_engine, micro_batches_per_step, resolve_deepspeed_config
from xmodal.training.features import require_linear_classifier
from xmodal.training.losses import DistillationLoss, require_poles
from xmodal.training.pictures import memory_format
from xmodal.training.pinned_config import check_pinned_config
from xmodal.training.ranks import Ranks, limit_waiting
from xmodal.training.trackers import require_trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run before its first step."""

    config: TrainConfig
    model: torch.nn.Module
    """With the same weights on all ranks."""
    spec: InputSpec
    stream: TrainStream
    loss: DistillationLoss
    micro_batches: int
    """Of a rank in a step."""
    deepspeed: dict[str, Any]
    """DeepSpeed's config, filled in."""
    peak: float | None
    """FLOP/s of the device, where they are known."""
    memory_format: torch.memory_format
    """Of pixels."""

    @property
    def schedule_steps(self) -> int:
        """Steps over which the learning rate is planned."""
        return self.config.epochs * self.stream.steps_per_epoch

    @property
    def frozen_steps(self) -> int:
        """Of these, the first ones, in which only the head learns."""
        return self.config.frozen_epochs * self.stream.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps that are done."""
        return min(self.schedule_steps, self.config.max_steps or self.schedule_steps)


def checked_view(config: TrainConfig) -> View:
    """The view, and what else can be found out alone: the likeliest mistakes, before the ranks wait for each other.

    Raises UserError for a view that is none, or holds posts that were forgotten, for trackers that are missing, and for
    an `output` that cannot be a folder, or whose `student` could not be replaced.
    """
    view = open_view(config.view)
    if not config.allow_forgotten:
        refuse_forgotten(view)
    require_trackers(config.trackers)
    check_can_be_made(config.output)
    require_replaceable(str(Path(config.output, "student")))  # told now, not after weeks of training
    return view


def prepare(config: TrainConfig, view: View, ranks: Ranks) -> Preparation:
    """Make the student, its stream and its loss. Raises UserError for what cannot be trained, or resumed."""
    if committed_steps(Path(config.output, "checkpoints")):
        check_pinned_config(Path(config.output), config)
    if config.select != "last":
        view.split("val")  # which must have samples to select by
    if config.loss.neutral == "masked" and view.description["counts"]["splits"]["val"]:
        require_poles(torch.from_numpy(target_array(view.split("val").rows)))  # what trains is looked at by the loss
    torch.manual_seed(config.seed)
    model = create_student(config.student)
    if config.keep_features:
        require_linear_classifier(model, config.student.model)
    if config.frozen_epochs and config.student.model_args.get("drop_rate") and ranks.is_first:
        log.warning("drop_rate of student.model_args has no effect in the %d frozen epochs", config.frozen_epochs)
    spec = input_spec(model, config.student.eval_crop_share, config.student.eval_squash)
    micro_batches = micro_batches_per_step(config.global_batch_size, config.micro_batch_size, ranks.world_size)
    stream = TrainStream(
        view,
        config=config.stream,
        size=spec.size,
        augment=config.augment,
        interpolation=spec.interpolation,
        global_batch_size=config.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batches=micro_batches,
    )
    deepspeed_config = resolve_deepspeed_config(
        config.deepspeed,
        global_batch_size=config.global_batch_size,
        micro_batches=micro_batches,
        world_size=ranks.world_size,
        max_grad_norm=config.optimizer.max_grad_norm,
    )
    return Preparation(
        config=config,
        model=model,
        spec=spec,
        stream=stream,
        loss=DistillationLoss(config.loss, lambda: torch.from_numpy(target_array(view.split("train").rows))),
        micro_batches=micro_batches,
        deepspeed=deepspeed_config,
        peak=config.peak_tflops * 1e12 or device_peak(),
        memory_format=memory_format(model, is_on_gpu=torch.cuda.is_initialized()),
    )


def start_engine(config: TrainConfig, model: torch.nn.Module, deepspeed_config: dict[str, Any]) -> Any:
    """DeepSpeed's engine of a student; from now on the model is its."""
    engine = create_engine(model, config.optimizer, deepspeed_config, config.deepspeed)
    if config.compile:
        engine.compile()  # in place: the names of the weights stay
    limit_waiting(config.peer_timeout)
    return engine
