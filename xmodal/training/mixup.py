"""Mixup (Zhang et al. 2018): each picture of a batch is mixed with another, and matched to what both are labelled."""

from collections.abc import Callable

import torch


def draw_share(alpha: float) -> float:
    """The share that a batch's pictures keep, of Beta(alpha, alpha): all or nothing by small alphas, half by large.

    By torch's own generator.
    """
    return torch.distributions.Beta(alpha, alpha).sample().item()


def mix_with_reversed(values: torch.Tensor, share: float) -> torch.Tensor:
    """`share` of each of `(n, …)` and the rest of its counterpart in reverse order, in the same precision.

    Pictures are mixed so before the student, and the losses against their labels after it: a cross-entropy is linear in
    what is matched, so this is the loss of the mixed label, whatever the loss's kind and weights.
    """
    return torch.lerp(values.flip(0), values, share)


def mixed_losses(
    student: Callable[[torch.Tensor], torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    targets: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    """The losses, `(n,)`, of a student on a batch that is mixed by a share of Beta(alpha, alpha)."""
    share = draw_share(alpha)
    logits = student(mix_with_reversed(pixels, share))
    return share * loss(logits, targets) + (1 - share) * loss(logits, targets.flip(0))
