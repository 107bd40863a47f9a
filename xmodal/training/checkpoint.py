"""Checkpoints that are complete or absent, for any number of ranks and any ZeRO stage.

`checkpoints/step-NNNNNNNN/` holds one `rank-NNNNN.safetensors` of each rank: its share of the parameters, each of them
whole, as `<kind>:<name>` (`weight`, and what the optimizer keeps of it), and as `buffer:<name>` its own buffers.
`commit.json` is written last; a folder without it is never loaded. Only then do `checkpoints/latest` and, by
validation, `checkpoints/best` name the folder.
"""

import json
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shards.errors import UserError
from shards.storage import LocalStorage, give_default_permissions
from xmodal.training.engine_state import (
    WEIGHT,
    gather_parameters,
    loss_scale_state,
    optimizer_numbers,
    restore_loss_scale,
    restore_parameters,
)
from xmodal.training.ranks import Ranks

COMMIT_FILE = "commit.json"
_BUFFER = "buffer"


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay."""

    last: int
    """So many of the newest."""
    every_steps: int = 0
    """The first one of every so many steps stays for good; 0 for none."""


def kept_steps(steps: Sequence[int], keep: Keep, best: int | None) -> set[int]:
    """Those of the checkpoints at `steps` (rising) that stay; `best` always does."""
    kept = set(steps[-keep.last :])
    if best is not None:
        kept.add(best)
    if keep.every_steps:
        stretches: dict[int, int] = {}
        for step in steps:
            stretches.setdefault(step // keep.every_steps, step)
        # The stretch from step 0 on has nothing to be kept: a run can begin anew.
        kept |= {step for stretch, step in stretches.items() if stretch}
    return kept


def best_step(costs: dict[int, float]) -> int | None:
    """Of step → cost in validation, such as the divergence from the teacher, the step with the least; of equals the
    newer one."""
    return min(costs, key=lambda step: (costs[step], -step), default=None)


def save_checkpoint(engine: Any, folder: Path, *, step: int, state: dict[str, Any], ranks: Ranks, keep: Keep) -> None:
    """Save the engine and `state` (plain values) as of `step` done steps; all ranks call it.

    Of the state, `validation_cost` (None where it was not measured) decides which checkpoint is the best. Raises
    UserError on the first rank where the others write to a folder that it does not see.
    """
    target = folder / _tag(step)
    if ranks.is_first:
        # What a killed run left of it may be of more ranks.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    dist.barrier()
    target.mkdir(parents=True, exist_ok=True)
    _write_share(engine, target, ranks)
    dist.barrier()
    if ranks.is_first:
        _check_all_wrote(target, ranks)
        commit = {
            "step": step,
            "world_size": ranks.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "optimizer": optimizer_numbers(engine),
            "loss_scale": loss_scale_state(engine),
            **state,
        }
        LocalStorage(target).replace(COMMIT_FILE, json.dumps(commit, indent=2).encode() + b"\n")
        _name_and_drop(folder, keep)
    dist.barrier()


def load_checkpoint(engine: Any, folder: Path, *, ranks: Ranks) -> dict[str, Any] | None:
    """Load the newest complete checkpoint into the engine and return its state; None if there is none.

    It may have been saved by another number of ranks and at another ZeRO stage. Raises UserError if it is damaged.
    """
    # The first rank chooses for all: on a shared file system the others may still see an older listing.
    chosen: list[dict[str, Any] | None] = [_newest_commit(folder) if ranks.is_first else None]
    dist.broadcast_object_list(chosen)
    state = chosen[0]
    if state is None:
        return None
    source = folder / _tag(state["step"])
    try:
        with ExitStack() as stack:
            # The first rank reads for all: many nodes would read the same from one file system.
            files = [
                stack.enter_context(safe_open(_share(source, rank), "pt"))
                for rank in range(state["world_size"] if ranks.is_first else 0)
            ]
            _restore(engine, files, state)
        _restore_buffers(engine.module, source, state["world_size"], ranks)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{source}: cannot be loaded: {error}",
            f"remove that folder, and the run goes on from the one before, or see what became of {_share(source, 0)}",
        ) from error
    restore_loss_scale(engine, state["loss_scale"])
    return state


def read_weights(folder: Path, world_size: int, kind: str) -> dict[str, torch.Tensor]:
    """The student in a complete checkpoint of so many ranks: weights of this kind (`weight`, `ema`), and buffers.

    What has none of this kind, since it never stepped, is as in `weight`; of each rank's buffers it is the mean.
    Raises OSError or SafetensorError for files that are damaged.
    """
    values: dict[str, dict[str, list[torch.Tensor]]] = {}
    for rank in range(world_size):
        with safe_open(_share(folder, rank), "pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no dict
                found, _, name = key.partition(":")
                if found in (WEIGHT, kind, _BUFFER):
                    values.setdefault(name, {}).setdefault(found, []).append(file.get_tensor(key))
    weights = {}
    for name, by_kind in values.items():
        if _BUFFER in by_kind:
            weights[name] = _mean(by_kind[_BUFFER])
        else:
            [weights[name]] = by_kind.get(kind) or by_kind[WEIGHT]
    return weights


def read_best_weights(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], int]:
    """`read_weights` of the checkpoint in `folder` that was best in validation, and its step."""
    best = folder / (folder / "best").read_text().strip()
    commit = json.loads((best / COMMIT_FILE).read_text())
    return read_weights(best, commit["world_size"], kind), commit["step"]


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """In double precision, of numbers that have a mean; else the first."""
    first = values[0]
    if not first.is_floating_point():
        return first
    return torch.stack([value.double() for value in values]).mean(dim=0).to(first.dtype)


def committed_steps(folder: Path) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{COMMIT_FILE}"))


def _tag(step: int) -> str:
    return f"step-{step:08d}"


def _share(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def _write_share(engine: Any, folder: Path, ranks: Ranks) -> None:
    """Write this rank's file and have the disk hold it: the commit file must not outlive it in a power cut."""
    mine: dict[str, torch.Tensor] = {}
    for number, (kind, name, value) in enumerate(gather_parameters(engine)):
        if number % ranks.world_size == ranks.rank:
            mine[f"{kind}:{name}"] = value.cpu().contiguous()
    for name, buffer in _kept_buffers(engine.module).items():
        mine[f"{_BUFFER}:{name}"] = buffer.detach().cpu().clone().contiguous()
    path = _share(folder, ranks.rank)
    save_file(mine, path)
    give_default_permissions(path)
    for written in (path, folder):
        descriptor = os.open(written, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_all_wrote(folder: Path, ranks: Ranks) -> None:
    unseen = [rank for rank in range(ranks.world_size) if not _share(folder, rank).exists()]
    if unseen:
        raise UserError(
            f"{folder}: the first rank does not see what rank {', '.join(map(str, unseen))} has written there",
            "give an `output` folder on a file system that all nodes share",
        )


def _restore(engine: Any, files: Sequence[Any], state: dict[str, Any]) -> None:
    places = {key: file for file in files for key in file.keys()}  # noqa: SIM118  # it is no dict
    names: list[Collection[str]] = [sorted(places)]
    dist.broadcast_object_list(names)
    known = set(names[0])

    def read(kind: str, name: str, shape: torch.Size) -> torch.Tensor | None:
        key = f"{kind}:{name}"
        if key not in known:
            return None
        value = torch.empty(shape, dtype=torch.float32, device=engine.device)
        if files:
            value.copy_(places[key].get_tensor(key))
        dist.broadcast(value, src=0)
        return value

    kinds = {key.partition(":")[0] for key in known} - {_BUFFER}
    restore_parameters(engine, kinds, read, state["optimizer"])


def _kept_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _restore_buffers(module: torch.nn.Module, folder: Path, saved_by: int, ranks: Ranks) -> None:
    """Each rank its own; of another number of ranks, each the mean of all."""
    buffers = _kept_buffers(module)
    if not buffers:
        return
    sources = [ranks.rank] if saved_by == ranks.world_size else range(saved_by)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(_share(folder, rank), "pt")) for rank in sources]
        for name, buffer in buffers.items():
            buffer.copy_(_mean([file.get_tensor(f"{_BUFFER}:{name}") for file in files]))


def _read_commits(folder: Path) -> dict[int, dict[str, Any]]:
    commits = [json.loads((folder / name / COMMIT_FILE).read_text()) for name in committed_steps(folder)]
    return {commit["step"]: commit for commit in commits}


def _newest_commit(folder: Path) -> dict[str, Any] | None:
    commits = _read_commits(folder)
    return commits[max(commits)] if commits else None


def _name_and_drop(folder: Path, keep: Keep) -> None:
    commits = _read_commits(folder)
    storage = LocalStorage(folder)
    storage.replace("latest", _tag(max(commits)).encode())
    measured = {step: cost for step, commit in commits.items() if (cost := commit.get("validation_cost")) is not None}
    best = best_step(measured)
    if best is not None:
        storage.replace("best", _tag(best).encode())
    kept = {_tag(step) for step in kept_steps(sorted(commits), keep, best)}
    for path in folder.glob("step-*"):
        if path.name not in kept:
            # Without its commit file first: what is half deleted must not look whole.
            (path / COMMIT_FILE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
