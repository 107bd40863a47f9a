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
    logits, targets = logits.float(), targets.float()
    if config.kind == "hard":
        num_classes = targets.shape[1]
        one_hot = F.one_hot(targets.argmax(dim=1), num_classes).float()
        targets = one_hot * (1 - config.label_smoothing) + config.label_smoothing / num_classes
    temperature = config.temperature
    if temperature != 1:
        targets = targets.pow(1 / temperature)
        targets = targets / targets.sum(dim=1, keepdim=True)
    log_probabilities = F.log_softmax(logits / temperature, dim=1)
    if class_weights is not None:
        targets = targets * class_weights.to(targets)
    # The gradient of softened logits shrinks with T²; the factor keeps its size (Hinton et al. 2015, §2.1).
    return -(targets * log_probabilities).sum(dim=1) * temperature**2


def balanced_class_weights(targets: torch.Tensor) -> torch.Tensor:
    """Weights `(classes,)` by which each class's total mass becomes equal, and the total mass stays what it was.

    `targets` `(n, classes)` are the soft labels of the whole split. A class that has no mass gets weight 0.
    """
    mass = targets.double().sum(dim=0)
    present = mass > 0
    weights = torch.where(present, mass.sum() / (present.sum() * mass.clamp_min(1e-12)), torch.zeros_like(mass))
    return weights.float()


def teacher_entropy(targets: torch.Tensor) -> torch.Tensor:
    """Entropy of each soft label, `(n,)`, nats: cross-entropy less this is the KL divergence from the teacher."""
    targets = targets.float()
    return -torch.special.xlogy(targets, targets).sum(dim=1)
