"""Steps without finite gradients, left out by an optimizer of torch's own as DeepSpeed's leave them out."""

from typing import Any

import torch


def leave_out_nonfinite_steps(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` change nothing in a step whose gradients have no finite norm; its `overflow` says so then.

    That is the name by which a DeepSpeed engine asks its optimizer. Without ZeRO all ranks hold the same gradients, the
    mean of all of theirs, so they leave out the same steps.
    """

    def drop(optimizer: Any, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        optimizer.overflow = not bool(norm.isfinite())
        if optimizer.overflow:
            for weight in weights:
                weight.grad = None  # a weight without one is neither stepped, nor decayed, nor averaged

    optimizer.register_step_pre_hook(drop)
