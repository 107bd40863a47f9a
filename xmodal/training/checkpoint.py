"""Checkpoints that are complete or absent, for any number of ranks and any ZeRO stage.

`checkpoints/step-NNNNNNNN/` holds one `rank-NNNNN.safetensors` of each rank: its share of the parameters, each of them
whole, as `<kind>:<name>` (`weight`, and what the optimizer keeps of it), and as `buffer:<name>` its own buffers.
`commit.json` is written last; a folder without it is never loaded. Only then do `checkpoints/latest` and, by
validation, `checkpoints/best` name the folder.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LocalStorage, give_default_permissions, told_to_user
from xmodal.training.engine_state import (
    WEIGHT,
    gather_parameters,
    loss_scale_state,
    optimizer_numbers,
    restore_loss_scale,
    restore_parameters,
)
from xmodal.training.mistakes import by_all, by_first
from xmodal.training.ranks import Ranks

COMMIT_FILE = "commit.json"
_BUFFER = "buffer"
_COMMIT = {"step": int, "world_size": int}
_ENGINE = {"optimizer": dict, "loss_scale": dict}
"""Of a commit file, with `_COMMIT`: what the engine goes on with."""


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
    UserError on all ranks where the disk of one of them takes no more, and where the first one does not see what the
    others write; nothing is left of the checkpoint then.
    """
    target = folder / folder_name(step)
    try:
        by_all(partial(_make_empty, target, ranks))
        tensors = _own_tensors(engine, ranks)
        by_all(partial(_write_share, tensors, target, ranks))
        commit = {
            "step": step,
            "world_size": ranks.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "optimizer": optimizer_numbers(engine),
            "loss_scale": loss_scale_state(engine),
            **state,
        }
        by_all(partial(_commit, commit, target, ranks))
    except UserError:
        if ranks.is_first:
            shutil.rmtree(target, ignore_errors=True)
        raise
    by_all(partial(_name_and_drop, folder, keep, ranks))


def load_checkpoint(
    engine: Any, folder: Path, *, ranks: Ranks, required: Mapping[str, type] = MappingProxyType({})
) -> dict[str, Any] | None:
    """Load the newest complete checkpoint into the engine and return its state; None if there is none.

    It may have been saved by another number of ranks and at another ZeRO stage. All ranks call it. Raises UserError on
    all of them if it is damaged, is of another student, or lacks one of the `required` values of the state.
    """
    # The first rank chooses for all: on a shared file system the others may still see an older listing.
    state = by_first(lambda: _newest_commit(folder, {**_ENGINE, **required}))
    if state is None:
        return None
    source = folder / folder_name(state["step"])
    _restore(engine, source, state)
    by_all(partial(_restore_buffers, engine.module, source, state["world_size"], ranks))
    restore_loss_scale(engine, state["loss_scale"])
    return state


def read_weights(folder: Path, world_size: int, kind: str) -> dict[str, torch.Tensor]:
    """The student in a complete checkpoint of so many ranks: weights of this kind (`weight`, `ema`), and buffers.

    What has none of this kind, since it never stepped, is as in `weight`; of each rank's buffers it is the mean.
    Raises OSError, SafetensorError, LookupError or ValueError for files that are damaged.
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
    """`read_weights` of the checkpoint in `folder` that was best in validation, and its step.

    Raises UserError if none was validated, and for one that is damaged.
    """
    commits = _read_commits(folder)
    step = best_step(_measured(commits))
    if step is None:
        raise UserError(
            f"{folder}: no checkpoint there was validated, so none can be selected", "set select=last for this run"
        )
    best = folder / folder_name(step)
    try:
        return read_weights(best, commits[step]["world_size"], kind), step
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        raise UserError(
            f"{best}: cannot be loaded: {error}", "remove that folder, and the run selects among those that are left"
        ) from error


def read_commit(checkpoint: Path, required: Mapping[str, type] = MappingProxyType({})) -> dict[str, Any]:
    """What the commit file of a complete checkpoint says, with its `step` and `world_size`, and what is `required`.

    Raises UserError for one that is damaged.
    """
    path = checkpoint / COMMIT_FILE
    remedy = f"it is damaged, or of another version of xmodal: remove {checkpoint}, or bring back a copy of it"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", remedy) from error
    return parse_json_object(content, str(path), remedy, {**_COMMIT, **required})


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """In double precision, of numbers that have a mean; else the first."""
    first = values[0]
    if not first.is_floating_point():
        return first
    return torch.stack([value.double() for value in values]).mean(dim=0).to(first.dtype)


def committed_steps(folder: Path) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{COMMIT_FILE}"))


def folder_name(step: int) -> str:
    """Of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _share(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def _told(folder: Path) -> AbstractContextManager[None]:
    """Turn what the system says of a folder that cannot be written into a UserError."""
    remedy = "see to its free space, quota and permissions; started again, the run goes on from the checkpoint before"
    return told_to_user(folder, remedy, every=(OSError, SafetensorError))


@contextmanager
def _told_of_damage(source: Path) -> Iterator[None]:
    """Turn what is wrong with the files of a checkpoint into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{source}: cannot be loaded: {error}",
            f"remove that folder, and the run goes on from the one before, or see what became of {_share(source, 0)}",
        ) from error


def _make_empty(folder: Path, ranks: Ranks) -> None:
    if ranks.is_first:
        # What a killed run left of it may be of more ranks.
        shutil.rmtree(folder, ignore_errors=True)
        with _told(folder):
            folder.mkdir(parents=True)


def _own_tensors(engine: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """What this rank's file holds; all ranks call it."""
    mine: dict[str, torch.Tensor] = {}
    for number, (kind, name, value) in enumerate(gather_parameters(engine)):
        if number % ranks.world_size == ranks.rank:
            mine[f"{kind}:{name}"] = value.cpu().contiguous()
    for name, buffer in _kept_buffers(engine.module).items():
        mine[f"{_BUFFER}:{name}"] = buffer.detach().cpu().clone().contiguous()
    return mine


def _write_share(tensors: dict[str, torch.Tensor], folder: Path, ranks: Ranks) -> None:
    """Write this rank's file and have the disk hold it: the commit file must not outlive it in a power cut."""
    path = _share(folder, ranks.rank)
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)  # the first rank's may not be seen here
        save_file(tensors, path)
        give_default_permissions(path)
        sync(path)
        sync(folder)


def _commit(commit: dict[str, Any], folder: Path, ranks: Ranks) -> None:
    if not ranks.is_first:
        return
    unseen = [rank for rank in range(ranks.world_size) if not _share(folder, rank).exists()]
    if unseen:
        raise UserError(
            f"{folder}: the first rank does not see what rank {', '.join(map(str, unseen))} has written there",
            "give an `output` folder on a file system that all nodes share",
        )
    with _told(folder):
        LocalStorage(folder).replace(COMMIT_FILE, json.dumps(commit, indent=2).encode() + b"\n")


def _restore(engine: Any, source: Path, state: dict[str, Any]) -> None:
    with ExitStack() as stack:
        places: dict[str, Any] = {}  # files by what they hold, of the first rank

        def opened() -> dict[str, tuple[int, ...]]:
            """The shapes of all that is there."""
            with _told_of_damage(source):
                for rank in range(state["world_size"]):
                    file = stack.enter_context(safe_open(_share(source, rank), "pt"))
                    places.update(dict.fromkeys(file.keys(), file))
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key, file in places.items()}
            _check_fits(engine.module, shapes, source)
            return shapes

        # The first rank reads for all: many nodes would read the same from one file system. To open a file compares its
        # length with what its header says, and maps it into memory: what could go wrong on that rank alone, while the
        # others wait for a value, has done so by then.
        known = by_first(opened)

        def read(kind: str, name: str, shape: torch.Size) -> torch.Tensor | None:
            key = f"{kind}:{name}"
            if key not in known:
                return None
            value = torch.empty(shape, dtype=torch.float32, device=engine.device)
            if places:
                value.copy_(places[key].get_tensor(key))
            dist.broadcast(value, src=0)
            return value

        kinds = {key.partition(":")[0] for key in known} - {_BUFFER}
        restore_parameters(engine, kinds, read, state["optimizer"])


def _check_fits(module: torch.nn.Module, known: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raise UserError unless the parameters and buffers of a checkpoint are those of this student."""
    expected = {
        f"{WEIGHT}:{name}": tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
    }
    expected |= {f"{_BUFFER}:{name}": tuple(buffer.shape) for name, buffer in _kept_buffers(module).items()}

    def like(key: str) -> str:
        """What has the same shape: what the optimizer keeps of a weight is as large as it."""
        kind, _, name = key.partition(":")
        return key if kind == _BUFFER else f"{WEIGHT}:{name}"

    unfit = {key for key in expected if key not in known}
    unfit |= {key for key, shape in known.items() if expected.get(like(key)) != shape}
    if unfit:
        key = min(unfit)
        there, here = (shapes.get(name, "missing") for shapes, name in ((known, key), (expected, like(key))))
        raise UserError(
            f"{source}: is of another student: {key} is {there} there and {here} here",
            "install the version of timm that the run was begun with, or give a new `output` folder",
        )


def _kept_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _restore_buffers(module: torch.nn.Module, folder: Path, saved_by: int, ranks: Ranks) -> None:
    """Each rank its own; of another number of ranks, each the mean of all."""
    buffers = _kept_buffers(module)
    if not buffers:
        return
    sources = [ranks.rank] if saved_by == ranks.world_size else range(saved_by)
    with _told_of_damage(folder), ExitStack() as stack:
        files = [stack.enter_context(safe_open(_share(folder, rank), "pt")) for rank in sources]
        for name, buffer in buffers.items():
            buffer.copy_(_mean([file.get_tensor(f"{_BUFFER}:{name}") for file in files]))


def _read_commits(folder: Path) -> dict[int, dict[str, Any]]:
    commits = [read_commit(folder / name) for name in committed_steps(folder)]
    return {commit["step"]: commit for commit in commits}


def _newest_commit(folder: Path, required: Mapping[str, type]) -> dict[str, Any] | None:
    # All of them: a damaged one is told now, not when the next is saved. Only the newest must be one to go on from.
    commits = _read_commits(folder)
    return read_commit(folder / folder_name(max(commits)), required) if commits else None


def _measured(commits: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """Step → cost in validation, of those where it was measured."""
    return {step: cost for step, commit in commits.items() if (cost := commit.get("validation_cost")) is not None}


def _name_and_drop(folder: Path, keep: Keep, ranks: Ranks) -> None:
    if not ranks.is_first:
        return
    commits = _read_commits(folder)
    best = best_step(_measured(commits))
    with _told(folder):
        storage = LocalStorage(folder)
        storage.replace("latest", folder_name(max(commits)).encode())
        if best is not None:
            storage.replace("best", folder_name(best).encode())
        kept = {folder_name(step) for step in kept_steps(sorted(commits), keep, best)}
        for path in folder.glob("step-*"):
            if path.name not in kept:
                # Without its commit file first: what is half deleted must not look whole.
                (path / COMMIT_FILE).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
