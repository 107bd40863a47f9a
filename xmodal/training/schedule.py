"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, total_steps: int, *, peak: float, final_share: float, warmup_share: float) -> float:
    """The rate of optimizer step `step` (from 0): a linear rise to `peak`, then a cosine to `final_share` of it."""
    warmup_steps = round(total_steps * warmup_share)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
