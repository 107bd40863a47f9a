"""The exponential moving average of the weights, kept in the optimizer's state.

There it is right whatever the ZeRO stage: each rank averages the very float32 weights that it steps, its own partition
of them, and checkpoints hold the average as they do the optimizer's own means.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KEY = "ema"
"""Name of the average among a weight's optimizer state."""


def decay_of_step(step: int, decay: float) -> float:
    """Share of the average that step `step` (from 0) leaves: at first less than `decay`, or the initial weights would
    stay in it for as long as `decay` remembers.
    """
    return min(decay, (1 + step) / (10 + step))


def keep_average(optimizer: torch.optim.Optimizer) -> None:
    """Have each step of `optimizer` move the averages, by the `ema_decay` of each parameter group.

    They begin as the weights before the first step.
    """
    before: dict[torch.Tensor, torch.Tensor] = {}

    def keep_first(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for _group, weight in _stepped(optimizer):
            # Not into the state as yet: an optimizer takes one that is not empty for its own.
            if KEY not in optimizer.state.get(weight, {}):
                before[weight] = weight.detach().clone()

    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, weight in _stepped(optimizer):
            state = optimizer.state[weight]
            if KEY not in state:
                state[KEY] = before.pop(weight)
            state[KEY].lerp_(weight.detach(), 1 - group["ema_decay"])

    for group in optimizer.param_groups:
        group["ema_decay"] = 0.0
    optimizer.register_step_pre_hook(keep_first)
    optimizer.register_step_post_hook(average)


def _stepped(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                yield group, weight


@contextmanager
def averages_as_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, the float32 weights are their averages; then they are what they were. What never stepped stays."""
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


@torch.no_grad()
def _exchange(optimizer: torch.optim.Optimizer) -> None:
    for weight, state in optimizer.state.items():
        if KEY in state:
            kept = weight.clone()
            weight.copy_(state[KEY])
            state[KEY].copy_(kept)
