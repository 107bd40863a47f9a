"""Steps whose loss or gradients are not finite: skipped, counted, and too many in a row are the end."""

from collections.abc import Sequence
from typing import Any

import torch

from shards.errors import UserError
from xmodal.training.agreement import gather_objects
from xmodal.training.ranks import Ranks

_MOST_KEYS = 20


class SkippedSteps:
    """How many steps DeepSpeed has skipped, since on some rank they gave no finite gradient; the same on all ranks."""

    def __init__(self, max_in_a_row: int) -> None:
        self._max_in_a_row = max_in_a_row
        self.total = 0
        self.in_a_row = 0

    def add(self, *, was_applied: bool) -> None:
        """Count a step that is done."""
        self.in_a_row = 0 if was_applied else self.in_a_row + 1
        self.total += not was_applied

    def are_too_many(self) -> bool:
        """Whether so many were skipped one after the other that going on is of no use."""
        return self.in_a_row > self._max_in_a_row

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]


def suspects(losses: torch.Tensor, keys: Sequence[str]) -> list[str]:
    """Of a step's samples, whose `losses` are `(n,)`, those whose own loss is not finite; if there are none, all."""
    bad = [key for key, finite in zip(keys, torch.isfinite(losses).tolist(), strict=True) if not finite]
    return bad or list(keys)


def gather_suspects(losses: torch.Tensor, keys: Sequence[str], ranks: Ranks) -> tuple[bool, list[str]]:
    """Over all ranks, each with its own samples: whether losses are at fault, and the suspects; all ranks call it."""
    here = (not bool(torch.isfinite(losses).all()), suspects(losses, keys))
    everywhere: list[tuple[bool, list[str]]] = gather_objects(here, ranks)
    at_fault = [keys for is_loss, keys in everywhere if is_loss]
    return bool(at_fault), [key for keys in at_fault or [keys for _, keys in everywhere] for key in keys]


def describe(is_loss: bool, keys: Sequence[str], loss_scale: float | None = None) -> str:
    """Which samples a skipped step had, in one line.

    With a `loss_scale` (float16), a gradient that is too large for it is nothing to worry about: DeepSpeed lowers the
    scale, to what is said here, and raises it again later.
    """
    more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
    what = "the loss is not finite for" if is_loss else "a gradient is not finite, of the samples"
    if loss_scale is not None and not is_loss:
        what = f"a gradient is too large for float16, the loss scale is now {loss_scale:g}; of the samples"
    return f"{what} {', '.join(keys[:_MOST_KEYS])}{more}"


def too_many(in_a_row: int, step: int, description: str) -> UserError:
    """The end of a run that skips step after step."""
    return UserError(
        f"step {step}: {in_a_row} steps in a row were skipped: {description}",
        "look at these samples, lower optimizer.lr, or go on with more max_skipped_steps from the last checkpoint",
    )
