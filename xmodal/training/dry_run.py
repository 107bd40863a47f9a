"""`xmodal train --dry-run`: what a run would do and cost, with the time of a step that is really done."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import yaml

from shards.errors import UserError
from shards.view import View
from xmodal.labels import CLASSES
from xmodal.training.agreement import facts_of_run, require_agreement
from xmodal.training.config import TrainConfig
from xmodal.training.costs import (
    BUCKET_ELEMENTS,
    PASSES,
    PASSES_RECOMPUTED,
    RankMemory,
    activation_bytes,
    forward_flops,
    num_parameters,
    rank_memory,
    utilisation,
)
from xmodal.training.host_memory import memory_limit
from xmodal.training.job import joined_ranks
from xmodal.training.losses import DistillationLoss
from xmodal.training.mistakes import by_all
from xmodal.training.preparation import Preparation, checked_view, prepare, start_engine
from xmodal.training.ranks import Ranks
from xmodal.training.step_log import memory_gib

WORLD_SIZES = (1, 8, 64)
"""Numbers of ranks that memory is estimated for, besides the run's own."""
SHORT_STEP = 5.0
LONG_STEP = 60.0
"""Seconds. After a first step that warms up, five are measured that are short, one that is longer; the first one itself
where it is long."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run would do, as far as it is known before a step is done."""

    config: TrainConfig
    deepspeed: dict[str, Any]
    """DeepSpeed's config with all values filled in."""
    num_parameters: int
    size: int
    flops: int | None
    """Of one forward pass of one image."""
    num_samples: int
    steps_per_epoch: int
    total_steps: int
    frozen_steps: int
    world_size: int
    micro_batches: int
    micro_batch_size: int
    device: str
    memory: dict[int, dict[int, RankMemory]]
    """By ZeRO stage and number of ranks."""
    peak: float | None

    @property
    def stage(self) -> int:
        """ZeRO's."""
        return self.deepspeed["zero_optimization"]["stage"]

    @property
    def is_offloaded(self) -> bool:
        """Whether weights or the optimizer's state lie elsewhere than the estimate has them."""
        return any(self.deepspeed["zero_optimization"].get(f"offload_{part}") for part in ("param", "optimizer"))

    @property
    def own_memory(self) -> RankMemory:
        """Of a rank of this run."""
        return self.memory[self.stage][self.world_size]


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """Seconds that a step of a plan really takes."""

    plan: RunPlan
    pass_seconds: float
    """Of the forward and backward pass of a micro-batch."""
    update_seconds: float
    """Of the optimizer."""
    memory_gib: float
    """Most that this rank has held meanwhile; on a CPU with all of Python."""

    @property
    def seconds(self) -> float:
        """Of an optimizer step with all of its micro-batches."""
        return self.plan.micro_batches * self.pass_seconds + self.update_seconds

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return self.plan.config.global_batch_size / self.seconds

    @property
    def seconds_of_all(self) -> float:
        """Of all steps; with a frozen backbone there is a forward pass alone, and with kept features one a view."""
        frozen = min(self.plan.frozen_steps, self.plan.total_steps)
        forwards = frozen
        if self.plan.config.keep_features:
            forwards = self.plan.steps_per_epoch * (2 if self.plan.config.augment.flip else 1)
        saved = (frozen - forwards / PASSES) * self.plan.micro_batches * self.pass_seconds
        return self.plan.total_steps * self.seconds - saved


def dry_run(config: TrainConfig, tell: Callable[[str], None]) -> None:
    """Tell the plan, then the time of a step that is really done, on random pictures. Nothing is written.

    The first rank alone tells. Raises UserError for what `train` would refuse before it looks at a checkpoint, and,
    after the plan, for a step that this machine has no memory for.
    """
    view = checked_view(config)
    with joined_ranks(config.peer_timeout) as ranks:
        require_agreement(facts_of_run(config, view), ranks)
        _dry_run(config, view, ranks, tell)


def _dry_run(config: TrainConfig, view: View, ranks: Ranks, tell: Callable[[str], None]) -> None:
    prepared = prepare(config, view, ranks)
    model, size, stream = prepared.model, prepared.spec.size, prepared.stream
    micro_batch_size = stream.micro_batch_size
    # Before there is an engine: ZeRO 3 takes the weights out of the model.
    num_weights, flops = num_parameters(model), forward_flops(model, size)
    dtype = _dtype(prepared.deepspeed)
    activations = activation_bytes(model, size, micro_batch_size, dtype)
    of_one_micro_batch = {
        **prepared.deepspeed,
        "train_batch_size": micro_batch_size * ranks.world_size,
        "gradient_accumulation_steps": 1,
    }
    plan = RunPlan(
        config=config,
        deepspeed=prepared.deepspeed,
        num_parameters=num_weights,
        size=size,
        flops=flops,
        num_samples=stream.num_samples,
        steps_per_epoch=stream.steps_per_epoch,
        total_steps=prepared.total_steps,
        frozen_steps=prepared.frozen_steps,
        world_size=ranks.world_size,
        micro_batches=prepared.micro_batches,
        micro_batch_size=micro_batch_size,
        device=torch.cuda.get_device_name() if torch.cuda.is_initialized() else "CPU",
        memory=_memory(config, prepared.deepspeed, num_weights, activations or 0, dtype, ranks),
        peak=prepared.peak,
    )
    if ranks.is_first:
        tell(plan_text(plan))
    if not plan.is_offloaded:
        # Hosts may differ.
        by_all(lambda: require_memory(plan.own_memory.total, ranks.num_on_host))
    try:
        engine = start_engine(config, model, of_one_micro_batch)
        pass_seconds, update_seconds = _measure(engine, prepared, micro_batch_size, dtype)
    except torch.OutOfMemoryError as error:
        raise UserError("a step takes more memory than this GPU has", _LESS_MEMORY) from error
    if ranks.is_first:
        measured = MeasuredStep(
            plan=plan, pass_seconds=pass_seconds, update_seconds=update_seconds, memory_gib=memory_gib()
        )
        tell(measured_text(measured))


_LESS_MEMORY = (
    "lower micro_batch_size, set student.gradient_checkpointing, or take more ranks or a higher ZeRO stage (deepspeed)"
)


def require_memory(of_rank: float, num_on_host: int, limit: int | None = None) -> None:
    """Raise UserError for a step that cannot fit, by the estimate in bytes: on a CPU the kernel would end the process.

    A GPU is a rank's own; `limit`, by default this machine's, is shared by all ranks on it.
    """
    what = f"a step takes about {of_rank / 2**30:.1f} GiB"
    if torch.cuda.is_initialized():
        owner, room = torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory
    else:
        owner, room = "this machine", memory_limit() if limit is None else limit
        if num_on_host > 1:
            what += f" of each of {num_on_host} ranks"
            of_rank *= num_on_host
    if of_rank > room:
        raise UserError(f"{what}, and {owner} has {room / 2**30:.1f} GiB", _LESS_MEMORY)


def _dtype(deepspeed_config: dict[str, Any]) -> torch.dtype:
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if deepspeed_config.get(name, {}).get("enabled"):
            return dtype
    return torch.float32


def _measure(engine: Any, prepared: Preparation, batch_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and of an optimizer step: medians."""
    loss, size = prepared.loss, prepared.spec.size
    pixels = torch.rand(batch_size, 3, size, size).to(engine.device, dtype, memory_format=prepared.memory_format)
    targets = torch.full((batch_size, len(CLASSES)), 1 / len(CLASSES), device=engine.device)
    engine.train()
    first = _timed_step(engine, loss, pixels, targets)
    # All ranks do equally many, or they would wait for each other for ever.
    num_more = 5 if sum(first) < SHORT_STEP else 1 if sum(first) < LONG_STEP else 0
    repeats = torch.tensor(num_more, device=engine.device)
    dist.broadcast(repeats, src=0)
    times = [_timed_step(engine, loss, pixels, targets) for _ in range(int(repeats.item()))] or [first]
    return statistics.median(one for one, _ in times), statistics.median(other for _, other in times)


def _timed_step(
    engine: Any, loss: DistillationLoss, pixels: torch.Tensor, targets: torch.Tensor
) -> tuple[float, float]:
    start = time.perf_counter()
    engine.backward(loss(engine(pixels), targets).mean())
    _wait_for_device()
    middle = time.perf_counter()
    engine.step()
    _wait_for_device()
    return middle - start, time.perf_counter() - middle


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _memory(
    config: TrainConfig,
    deepspeed_config: dict[str, Any],
    num_weights: int,
    activations: int,
    dtype: torch.dtype,
    ranks: Ranks,
) -> dict[int, dict[int, RankMemory]]:
    zero = deepspeed_config["zero_optimization"]
    # Where none is given, ZeRO takes 500 million; without ZeRO there is none, and the other stages are as in our files.
    bucket = zero.get("reduce_bucket_size", 500_000_000 if zero["stage"] else BUCKET_ELEMENTS)
    return {
        stage: {
            world_size: rank_memory(
                num_weights,
                stage=stage,
                world_size=world_size,
                has_average=bool(config.optimizer.ema_decay),
                activations=activations,
                bucket_elements=int(bucket),
                weight_bytes=dtype.itemsize,
            )
            for world_size in sorted({ranks.world_size, *WORLD_SIZES})
        }
        for stage in range(4)
    }


def plan_text(plan: RunPlan) -> str:
    """All of it, as lines."""
    lines = [
        "config",
        *_indented(yaml.safe_dump(_plain(asdict(plan.config)), sort_keys=False)),
        "",
        f"DeepSpeed, from {plan.config.deepspeed}",
        *_indented(yaml.safe_dump(plan.deepspeed, sort_keys=False)),
        "",
        *_table(_plan_rows(plan)),
        "",
        *_memory_lines(plan),
        "",
        f"One step is being done on {plan.device}, of {plan.micro_batch_size} images a rank.",
    ]
    return "\n".join(lines)


def _plan_rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    student = plan.config.student
    yield "student", f"{student.model}, {plan.num_parameters:,} parameters, {plan.size} by {plan.size} pixels"
    if plan.flops:
        trained = f"{PASSES * plan.flops / 1e9:.4g} GFLOP an image in training"
        if student.gradient_checkpointing:
            trained += f" ({PASSES_RECOMPUTED * plan.flops / 1e9:.4g} with what gradient checkpointing does twice)"
        yield "operations", trained
    accumulated = f"{plan.micro_batches} of {plan.micro_batch_size} a rank"
    yield "global batch", f"{plan.config.global_batch_size} images: {accumulated}, {_ranks(plan.world_size)}"
    yield "steps", f"{plan.total_steps:,}, {plan.steps_per_epoch:,} an epoch of {plan.num_samples:,} samples"


def measured_text(measured: MeasuredStep) -> str:
    """How long a step takes, and all of them, as lines."""
    return "\n".join([*_table(_measured_rows(measured)), "", "A dry run: nothing was written."])


def _measured_rows(measured: MeasuredStep) -> Iterator[tuple[str, str]]:
    plan = measured.plan
    yield (
        "a step here",
        f"{_seconds(measured.seconds)} on {plan.device}: {plan.micro_batches} times "
        f"{_seconds(measured.pass_seconds)} of passes, {_seconds(measured.update_seconds)} of the optimizer",
    )
    speed = f"{measured.images_per_second:.4g} images/s"
    if plan.peak and plan.flops:
        share = utilisation(measured.images_per_second / plan.world_size, PASSES * plan.flops, plan.peak)
        speed += f", MFU {share:.1%} of {plan.peak / 1e12:.4g} TFLOP/s"
    yield "speed", speed
    whole = ", of the whole process, Python and its libraries too" if plan.device == "CPU" else ""
    yield "memory here", f"{measured.memory_gib:.2f} GiB at most{whole}"
    duration = timedelta(seconds=round(measured.seconds_of_all))
    yield "all steps", f"{duration} (h:mm:ss), without waiting for data, validation and checkpoints"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def _table(rows: Iterator[tuple[str, str]]) -> list[str]:
    return [f"{name:<12}  {value}" for name, value in rows]


def _memory_lines(plan: RunPlan) -> Iterator[str]:
    world_sizes = list(plan.memory[0])
    yield f"GiB a rank, estimated, with {plan.micro_batch_size} images a pass" + (
        ", and as if nothing were offloaded" if plan.is_offloaded else ""
    )
    yield "       " + "".join(f"{_ranks(number):>10}" for number in world_sizes)
    for stage, by_world_size in plan.memory.items():
        cells = "".join(f"{memory.total / 2**30:>10.2f}" for memory in by_world_size.values())
        yield f"ZeRO {stage} {cells}" + ("  this run's" if stage == plan.stage else "")
    passes = plan.own_memory.passes / 2**30
    yield f"of this run's, {passes:.2f} are activations or, where those are more, gradients in float32"


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
