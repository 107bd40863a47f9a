"""A rank that saves at each ZeRO stage, loads what was saved, and writes what differs from going on unbroken.

    python checkpoint_program.py save|load FOLDER

`save` trains three steps at each stage, saves, trains two more and keeps the weights; at each stage it also loads what
this stage and the one before have saved, trains the same two steps and compares. `load` loads each at another stage.
Stages are those of the files configs/deepspeed/zero{STAGE}.json.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from launchers import ROOT, TINY_MODEL_ARGS

from xmodal.students import StudentConfig, create_student
from xmodal.training.checkpoint import Keep, load_checkpoint, save_checkpoint
from xmodal.training.config import OptimizerConfig
from xmodal.training.engine import (
    create_engine,
    full_averaged_weights,
    full_weights,
    resolve_deepspeed_config,
    set_ema_decay,
    set_learning_rate,
)
from xmodal.training.ranks import Ranks, start_process_group

BATCH = 8
# ZeRO 3 last: it replaces torch's linear function by its own, which rounds otherwise, for the whole process.
STAGES = ("0", "1", "2", "2_offload", "3", "3_offload")


def new_engine(stage: str, ranks: Ranks, seed: int) -> Any:
    torch.manual_seed(seed)
    student = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS)
    path = str(ROOT / f"configs/deepspeed/zero{stage}.json")
    config = resolve_deepspeed_config(
        path, global_batch_size=BATCH, micro_batches=1, world_size=ranks.world_size, max_grad_norm=1.0
    )
    return create_engine(create_student(student), OptimizerConfig(weight_decay=0.1, ema_decay=0.5), config, path)


def take_steps(engine: Any, first: int, last: int, ranks: Ranks) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randn(BATCH, 3, 32, 32, generator=generator).bfloat16()
        classes = torch.randint(3, (BATCH,), generator=generator)
        mine = slice(ranks.rank * BATCH // ranks.world_size, (ranks.rank + 1) * BATCH // ranks.world_size)
        set_learning_rate(engine, 1e-2 / (step + 1))
        set_ema_decay(engine, 0.5)
        engine.backward(torch.nn.functional.cross_entropy(engine(pixels[mine]).float(), classes[mine]))
        engine.step()


def all_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The weights and their averages."""
    averages = full_averaged_weights(engine)
    return full_weights(engine) | {f"average of {name}": value for name, value in averages.items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def save(folder: Path, ranks: Ranks) -> None:
    for number, stage in enumerate(STAGES):
        engine = new_engine(stage, ranks, seed=0)
        take_steps(engine, 0, 3, ranks)
        keep = Keep(last=1)
        save_checkpoint(engine, folder / f"zero{stage}", step=3, state={"said": stage}, ranks=ranks, keep=keep)
        saved = all_weights(engine)
        take_steps(engine, 3, 5, ranks)
        after = all_weights(engine)
        if ranks.is_first:
            torch.save((saved, after), folder / f"zero{stage}.pt")
        dist.barrier()
        for saved_at in STAGES[max(0, number - 1) : number + 1]:
            compare(folder, saved_at, stage, ranks)


def load(folder: Path, ranks: Ranks) -> None:
    for saved_at, stage in (("3", "0"), ("2", "1"), ("0", "2"), ("3_offload", "2_offload"), ("1", "3")):
        compare(folder, saved_at, stage, ranks)


def compare(folder: Path, saved_at: str, stage: str, ranks: Ranks) -> None:
    saved, after = torch.load(folder / f"zero{saved_at}.pt")
    engine = new_engine(stage, ranks, seed=1)
    state = load_checkpoint(engine, folder / f"zero{saved_at}", ranks=ranks)
    assert state is not None
    assert state["said"] == saved_at
    at_once = largest_difference(all_weights(engine), saved)
    take_steps(engine, 3, 5, ranks)
    later = largest_difference(all_weights(engine), after)
    if ranks.is_first:
        sys.stdout.write(f"difference {saved_at} {stage} {at_once} {later}\n")


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    ranks = start_process_group()
    {"save": save, "load": load}[verb](folder, ranks)
    dist.destroy_process_group()
