"""Checkpoints that are complete or absent.

DeepSpeed's files lie in `checkpoints/step-NNNNNNNN/`; `commit.json` there is written last, and only then does
`checkpoints/latest` name the folder. One without `commit.json` is never loaded.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shards.errors import UserError
from shards.storage import LocalStorage
from xmodal.training.ranks import Ranks

COMMIT_FILE = "commit.json"


def save_checkpoint(engine: Any, folder: Path, *, step: int, state: dict[str, Any], ranks: Ranks, keep: int) -> None:
    """Save the engine and `state` (plain values) as of `step` done steps; all ranks call it."""
    tag = _tag(step)
    # save_latest=False: DeepSpeed's own `latest` is written in place, and before all ranks' files are complete.
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    _sync_files(folder / tag)
    dist.barrier()
    if ranks.is_first:
        commit = {"step": step, "world_size": ranks.world_size, "zero_stage": engine.zero_optimization_stage(), **state}
        LocalStorage(folder / tag).replace(COMMIT_FILE, json.dumps(commit, indent=2).encode() + b"\n")
        LocalStorage(folder).replace("latest", tag.encode())
        _drop_old(folder, keep)
    dist.barrier()


def _sync_files(folder: Path) -> None:
    """Have the disk hold what DeepSpeed wrote: the commit file must not outlive it in a power cut."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def committed_steps(folder: Path) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{COMMIT_FILE}"))


def _tag(step: int) -> str:
    return f"step-{step:08d}"


def _newest_commit(folder: Path) -> dict[str, Any] | None:
    complete = committed_steps(folder)
    return json.loads((folder / complete[-1] / COMMIT_FILE).read_text()) if complete else None


def load_checkpoint(engine: Any, folder: Path, *, ranks: Ranks) -> dict[str, Any] | None:
    """Load the newest complete checkpoint into the engine and return its state; None if there is none.

    Raises UserError if it was saved by another number of ranks or another ZeRO stage.
    """
    # The first rank chooses for all: on a shared file system the others may still see an older listing.
    chosen: list[dict[str, Any] | None] = [_newest_commit(folder) if ranks.is_first else None]
    dist.broadcast_object_list(chosen)
    state = chosen[0]
    if state is None:
        return None
    tag = _tag(state["step"])
    for name, now in (("world_size", ranks.world_size), ("zero_stage", engine.zero_optimization_stage())):
        if state[name] != now:
            raise UserError(
                f"{folder / tag}: saved with {name} {state[name]}, and this run has {now}",
                f"start with {name} {state[name]} again, or give a new `output` folder",
            )
    path, _ = engine.load_checkpoint(str(folder), tag=tag)
    assert path is not None, f"{folder / tag} is committed, yet DeepSpeed finds nothing in it"
    return state


def _drop_old(folder: Path, keep: int) -> None:
    complete = committed_steps(folder)
    for tag in complete[:-keep]:
        # Without its commit file first: what is half deleted must not look whole.
        (folder / tag / COMMIT_FILE).unlink()
        shutil.rmtree(folder / tag)
    for leftover in folder.glob("step-*"):
        if leftover.name not in complete:
            shutil.rmtree(leftover, ignore_errors=True)
