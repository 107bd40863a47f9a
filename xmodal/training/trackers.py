"""Where the numbers of a run can be watched: TensorBoard, Weights & Biases.

They get numbers and settings alone: no texts or pictures of posts, no keys of samples, no paths of the machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from shards.errors import UserError
from shards.storage import told_to_user


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that trackers are told of."""

    folder: Path
    run_id: str
    """Stays the same when the run is resumed, also from a copy of its checkpoints elsewhere."""
    wandb_project: str
    settings: Mapping[str, Any]
    resumed_step: int
    """0 for a run that begins."""


class Tracker(Protocol):
    """Takes the numbers of a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values`, by names such as `step/loss`, as of `step` done steps."""

    def close(self) -> None:
        """Write or send what is left."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"trackers: {name} is not installed", f"pip install 'xmodal[{name}]', or leave it out of trackers"
            )


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """Begin, or go on with, the run in each. Raises UserError for one that does not let us in."""
    return [_TRACKERS[name](run) for name in names]


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder / "tensorboard"
        with told_to_user(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=run.resumed_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        with told_to_user(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with told_to_user(self._folder):
            self._writer.close()


class _WandB:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=run.wandb_project,
                name=run.folder.resolve().name,
                id=run.run_id,
                resume="allow",
                dir=run.folder,
                config=dict(run.settings),
                allow_val_change=True,  # of what a resumed run may change, such as max_steps
                # Lines on the terminal may name posts; what it finds out of machine and command line has paths.
                settings=wandb.Settings(console="off", save_code=False, disable_git=True, x_disable_meta=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"trackers: wandb: {str(error).strip().splitlines()[0]}",
                "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later",
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
}
