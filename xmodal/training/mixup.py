"""Mixup (Zhang et al. 2018): each picture of a batch is mixed with another, and matched to what both are labelled."""

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
