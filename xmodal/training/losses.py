"""Losses against the teacher's soft labels, and the class weights of a view. Pure functions of tensors."""

import torch
import torch.nn.functional as F  # noqa: N812  the name that all of PyTorch's users know

from xmodal.training.config import LossConfig


def sample_losses(
    logits: torch.Tensor, targets: torch.Tensor, config: LossConfig, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of each sample: logits `(n, classes)` and soft labels `(n, classes)` → `(n,)`, float32.

    Their mean is the batch's loss. It is not divided by the sum of the class weights, so the mean over ranks of the
    ranks' means is the mean over the global batch.
    """
    targets = matched_targets(targets, config)
    if config.kind == "hard":
        targets = targets * (1 - config.label_smoothing) + config.label_smoothing / targets.shape[1]
    if class_weights is not None:
        targets = targets * class_weights.to(targets)
    log_probabilities = F.log_softmax(logits.float() / config.temperature, dim=1)
    # The gradient of softened logits shrinks with T²; the factor keeps its size (Hinton et al. 2015, §2.1).
    return -(targets * log_probabilities).sum(dim=1) * config.temperature**2


def matched_targets(targets: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """What the student is to match, `(n, classes)`, float32: soft labels at the temperature, or one class each."""
    if config.kind == "hard":
        return F.one_hot(targets.argmax(dim=1), targets.shape[1]).float()
    if config.temperature == 1:
        return targets.float()
    flattened = targets.float().pow(1 / config.temperature)
    return flattened / flattened.sum(dim=1, keepdim=True)


def balanced_class_weights(targets: torch.Tensor) -> torch.Tensor:
    """Weights `(classes,)` by which each class's total mass becomes equal, and the total mass stays what it was.

    `targets` `(n, classes)` are the `matched_targets` of the whole split. A class that has no mass gets weight 0.
    """
    mass = targets.double().sum(dim=0)
    present = mass > 0
    weights = torch.where(present, mass.sum() / (present.sum() * mass.clamp_min(1e-12)), torch.zeros_like(mass))
    return weights.float()


def teacher_entropy(targets: torch.Tensor) -> torch.Tensor:
    """Entropy of each soft label, `(n,)`, nats: cross-entropy less this is the KL divergence from the teacher."""
    targets = targets.float()
    return -torch.special.xlogy(targets, targets).sum(dim=1)
