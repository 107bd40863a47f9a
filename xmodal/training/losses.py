"""Losses against the teacher's soft labels, and the weights of a view's classes and samples: functions of tensors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  the name that all of PyTorch's users know

from shards.errors import UserError
from xmodal.labels import NEGATIVE, POSITIVE
from xmodal.training.config import LossConfig

POLES = [NEGATIVE, POSITIVE]


class DistillationLoss:
    """The loss of samples of one view: its weights are those of all of the view's train split."""

    def __init__(self, config: LossConfig, read_targets: Callable[[], torch.Tensor]) -> None:
        """`read_targets` gives the soft labels of the whole train split, `(n, classes)`; not all losses ask for them.

        Raises UserError where neutral is to be masked and has all of the probability of a sample.
        """
        self.config = config
        self._mean_confidence_weight = 1.0
        self._soft_class_weights: torch.Tensor | None = None
        self._hard_class_weights: torch.Tensor | None = None
        if not config.confidence_power and config.class_weights == "none" and config.neutral == "kept":
            return
        train_targets = read_targets()
        if config.neutral == "masked":
            require_poles(train_targets)
            train_targets = poles_of(train_targets)
        weights = confidence_weights(train_targets, config.confidence_power)
        self._mean_confidence_weight = weights.double().mean().item()
        if config.class_weights == "balanced":
            if config.kind != "hard":
                self._soft_class_weights = balanced_class_weights(soften(train_targets, config.temperature), weights)
            if config.kind != "soft":
                self._hard_class_weights = balanced_class_weights(one_hot(train_targets), weights)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each sample: logits `(n, classes)` and soft labels `(n, classes)` → `(n,)`, float32.

        Their mean is the batch's loss. It is not divided by the sum of any weights, so the mean over ranks of the
        ranks' means is the mean over the global batch.
        """
        config = self.config
        if config.neutral == "masked":
            logits, targets = logits[:, POLES], poles_of(targets)
        hard_share = {"soft": 0.0, "hard": 1.0, "mixed": config.hard_share}[config.kind]
        losses = torch.zeros(len(logits), device=logits.device)
        if hard_share < 1:
            soft = soft_cross_entropy(logits, targets, config.temperature, self._soft_class_weights)
            losses += (1 - hard_share) * soft
        if hard_share > 0:
            losses += hard_share * hard_cross_entropy(logits, targets, config.label_smoothing, self._hard_class_weights)
        if config.confidence_power:
            losses *= confidence_weights(targets, config.confidence_power) / self._mean_confidence_weight
        return losses


def require_poles(targets: torch.Tensor) -> None:
    """Raise UserError where neutral has all of the probability of one of some soft labels, `(n, classes)`."""
    num_neutral = int((targets[:, POLES].sum(dim=1) == 0).sum())
    if num_neutral:
        raise UserError(
            f"loss.neutral: masked, but {num_neutral} of {len(targets)} samples are neutral and no more",
            "set loss.neutral: kept, or leave those samples out of the view",
        )


def poles_of(targets: torch.Tensor) -> torch.Tensor:
    """Soft labels `(n, classes)` → those of negative and positive alone, `(n, 2)`, scaled to add up to 1."""
    poles = targets[:, POLES].float()
    return poles / poles.sum(dim=1, keepdim=True)


def soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each sample against its soft label, `(n,)`; both sides are flattened by the temperature."""
    matched = soften(targets, temperature)
    if class_weights is not None:
        matched = matched * class_weights.to(matched)
    log_probabilities = F.log_softmax(logits.float() / temperature, dim=1)
    # The gradient of softened logits shrinks with T²; the factor keeps its size (Hinton et al. 2015, §2.1).
    return -(matched * log_probabilities).sum(dim=1) * temperature**2


def hard_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each sample against its soft label's most probable class, `(n,)`.

    The whole sample weighs as its class does, what smoothing gives to the other classes included: so Keras has it, and
    the paper with it. (PyTorch would weigh each class's part by that class, and so move the optimum to the rare ones.)
    """
    matched = one_hot(targets)
    smoothed = matched * (1 - label_smoothing) + label_smoothing / matched.shape[1]
    losses = -(smoothed * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    return losses if class_weights is None else losses * (matched * class_weights.to(matched)).sum(dim=1)


def soften(targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Soft labels `(n, classes)` at a temperature, float32."""
    if temperature == 1:
        return targets.float()
    flattened = targets.float().pow(1 / temperature)
    return flattened / flattened.sum(dim=1, keepdim=True)


def one_hot(targets: torch.Tensor) -> torch.Tensor:
    """The most probable class of each soft label as `(n, classes)`, float32."""
    return F.one_hot(targets.argmax(dim=1), targets.shape[1]).float()


def confidence_weights(targets: torch.Tensor, power: float) -> torch.Tensor:
    """The teacher's confidence (its largest probability) to a power, `(n,)`, float32; all 1 for a power of 0."""
    return targets.float().amax(dim=1).pow(power)


def balanced_class_weights(targets: torch.Tensor, sample_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weights `(classes,)` by which each class's total mass becomes equal, and the total mass stays what it was.

    `targets` `(n, classes)` are what is matched in the whole split; `sample_weights` `(n,)` say how much each sample
    counts. A class that has no mass gets weight 0. For one class each, they are scikit-learn's
    "balanced" ones.
    """
    masses = targets.double() if sample_weights is None else targets.double() * sample_weights.double()[:, None]
    mass = masses.sum(dim=0)
    present = mass > 0
    weights = torch.where(present, mass.sum() / (present.sum() * mass.clamp_min(1e-12)), torch.zeros_like(mass))
    return weights.float()


def teacher_entropy(targets: torch.Tensor) -> torch.Tensor:
    """Entropy of each soft label, `(n,)`, nats: cross-entropy less this is the KL divergence from the teacher."""
    targets = targets.float()
    return -torch.special.xlogy(targets, targets).sum(dim=1)
