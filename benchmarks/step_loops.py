"""The contenders of `step.py` that are loops of its own, on pictures that are made once: the engine, and bare PyTorch.

python benchmarks/step_loops.py engine '{"model": ...}' FIGURES.json, or by a launcher of several ranks
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from xmodal.students import StudentConfig, create_student, input_spec
from xmodal.training.config import OptimizerConfig
from xmodal.training.engine import create_engine, resolve_deepspeed_config, set_learning_rate
from xmodal.training.ranks import start_process_group
from xmodal.training.step_log import memory_gib

RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 0.05, 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all contenders do."""

    model: str
    gradient_checkpointing: bool
    batch_size: int
    """Of a rank."""
    warm_up_steps: int
    """Not counted: in the first one, memory is taken and the optimizer makes its state."""
    counted_steps: int
    deepspeed: str = ""
    """DeepSpeed's config, for the engine."""


def main() -> None:
    """Do what the arguments say; the first rank writes the figures."""
    # Before them stands what DeepSpeed's launcher adds, --local_rank=N: the environment says the same.
    name, plan, figures_file = sys.argv[-3:]
    contender: Callable[[Plan], dict[str, Any]] = {"engine": engine_loop, "torch": torch_loop}[name]
    figures = contender(Plan(**json.loads(plan)))
    if int(os.environ.get("RANK", "0")) == 0:
        Path(figures_file).write_text(json.dumps(figures))
    if dist.is_initialized():
        dist.destroy_process_group()


def engine_loop(plan: Plan) -> dict[str, Any]:
    """The engine of our trainer, as it makes it."""
    ranks = start_process_group()
    config = resolve_deepspeed_config(
        plan.deepspeed,
        global_batch_size=plan.batch_size * ranks.world_size,
        micro_batches=1,
        world_size=ranks.world_size,
        max_grad_norm=MAX_GRAD_NORM,
    )
    student = new_student(plan)
    size = input_spec(student).size
    optimizer = OptimizerConfig(lr=RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    num_parameters = count_parameters(student)
    engine = create_engine(student, optimizer, config, plan.deepspeed)
    pixels, targets = new_batch(plan, size, engine.device)
    pixels = pixels.to(next(engine.module.parameters()).dtype)

    def step() -> None:
        set_learning_rate(engine, RATE)
        engine.backward(cross_entropy(engine(pixels).float(), targets))
        engine.step()

    return measure(plan, step) | {"parameters": num_parameters}


def torch_loop(plan: Plan) -> dict[str, Any]:
    """What one would write without a library: the weights in float32, autocast, and DDP over the ranks."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    student: torch.nn.Module = new_student(plan).to(device)
    size, num_parameters = input_spec(student).size, count_parameters(student)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
        student = DistributedDataParallel(student, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)
    pixels, targets = new_batch(plan, size, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(student(pixels), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return measure(plan, step) | {"parameters": num_parameters}


def new_student(plan: Plan) -> torch.nn.Module:
    """The student that our trainer makes, with random weights."""
    torch.manual_seed(0)
    config = StudentConfig(model=plan.model, pretrained=False, gradient_checkpointing=plan.gradient_checkpointing)
    return create_student(config).train()


def new_batch(plan: Plan, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and soft labels of three classes."""
    pixels = torch.randn(plan.batch_size, 3, size, size, device=device)
    return pixels, torch.randn(plan.batch_size, 3, device=device).softmax(dim=1)


def measure(plan: Plan, step: Callable[[], None]) -> dict[str, float]:
    """Images/s over all ranks, and the most memory that this one has held."""
    for _ in range(plan.warm_up_steps):
        step()
    start = now()
    for _ in range(plan.counted_steps):
        step()
    seconds = now() - start
    images = plan.counted_steps * plan.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    return {"images_per_second": images / seconds, "memory_gib": memory_gib()}


def now() -> float:
    """The time, once the device has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def count_parameters(model: torch.nn.Module) -> int:
    """All weights; under ZeRO 3 they are to be counted before there is an engine."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
