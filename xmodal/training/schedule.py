"""The learning rate, and the phase that it belongs to, as pure functions of the step."""

import math


def learning_rate(step: int, total_steps: int, *, peak: float, final_share: float, warmup_share: float) -> float:
    """The rate of optimizer step `step` (from 0): a linear rise to `peak`, then a cosine to `final_share` of it."""
    warmup_steps = round(total_steps * warmup_share)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def step_in_phase(step: int, frozen_steps: int, total_steps: int) -> tuple[int, int]:
    """Where step `step` (from 0) stands in its phase, and how many steps that has.

    The first phase, in which only the head learns, has `frozen_steps`; the second has the others.
    """
    if step < frozen_steps:
        return step, frozen_steps
    return step - frozen_steps, total_steps - frozen_steps
