import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from shards.errors import UserError
from xmodal.training.config import LossConfig
from xmodal.training.losses import (
    DistillationLoss,
    balanced_class_weights,
    confidence_weights,
    hard_cross_entropy,
    one_hot,
    soft_cross_entropy,
    soften,
    teacher_entropy,
)

LOSSES: list[dict[str, Any]] = [
    {},
    {"temperature": 4.0},
    {"kind": "hard"},
    {"kind": "hard", "label_smoothing": 0.2},
    {"kind": "mixed", "hard_share": 0.3, "temperature": 2.0, "label_smoothing": 0.1},
]
WEIGHTS: list[dict[str, Any]] = [
    {},
    {"class_weights": "balanced"},
    {"confidence_power": 2.0},
    {"class_weights": "balanced", "confidence_power": 1.0},
]
CONFIGS = [
    LossConfig(**loss, **weights, **neutral)
    for loss in LOSSES
    for weights in WEIGHTS
    for neutral in ({}, {"neutral": "masked"})
]


def soft_labels(num: int, seed: int) -> torch.Tensor:
    return torch.rand(num, 3, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def confident_labels(num: int, seed: int) -> torch.Tensor:
    """Soft labels of every confidence, the classes of unequal share."""
    return (soft_labels(num, seed).log() * 12 + torch.tensor([0.0, 1.0, 3.0])).softmax(dim=1)


def some_logits(num: int, seed: int) -> torch.Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)) * 3


def test_soft_cross_entropy_is_that_of_torch():
    logits, targets = torch.randn(16, 3), soft_labels(16, 0)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)


def test_hard_cross_entropy_with_smoothing_is_that_of_torch():
    logits, targets = torch.randn(16, 3), soft_labels(16, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets.argmax(dim=1), label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(hard_cross_entropy(logits, targets, 0.2), expected)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.3, 10))
def test_the_soft_loss_is_the_divergence_at_the_temperature_and_its_constant(seed, temperature):
    logits, targets = some_logits(8, seed), confident_labels(8, seed)
    matched = soften(targets, temperature)
    divergence = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(dim=1), matched, reduction="none"
    ).sum(dim=1)  # fmt: skip
    expected = temperature**2 * (divergence + teacher_entropy(matched))
    torch.testing.assert_close(soft_cross_entropy(logits, targets, temperature), expected, rtol=1e-4, atol=1e-4)


def test_the_papers_loss_is_that_of_keras():
    """`CategoricalCrossentropy(label_smoothing=0.2)` with the `class_weight` of scikit-learn's "balanced", by hand."""
    targets, logits = confident_labels(300, 4), some_logits(300, 5)
    labels = targets.argmax(dim=1).numpy()
    class_weight = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    smoothed = np.eye(3)[labels] * (1 - 0.2) + 0.2 / 3
    probabilities = logits.double().softmax(dim=1).numpy()
    expected = class_weight[labels] * -(smoothed * np.log(probabilities)).sum(axis=1)
    loss = DistillationLoss(LossConfig(kind="hard", label_smoothing=0.2, class_weights="balanced"), lambda: targets)
    np.testing.assert_allclose(loss(logits, targets).numpy(), expected, rtol=1e-5)


def test_soft_loss_is_least_where_the_student_agrees_with_the_teacher_whatever_the_temperature():
    targets = soft_labels(4, 2)
    for temperature in (0.5, 1.0, 4.0):
        logits = targets.log().requires_grad_()
        soft_cross_entropy(logits, targets, temperature).sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-5


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.99))
def test_the_mixed_loss_lies_between_its_two_parts_by_their_shares(seed, share):
    logits, targets = some_logits(8, seed), confident_labels(8, seed)
    parts = {"temperature": 3.0, "label_smoothing": 0.2}
    mixed = DistillationLoss(LossConfig(kind="mixed", hard_share=share, **parts), lambda: targets)(logits, targets)
    soft = soft_cross_entropy(logits, targets, 3.0)
    hard = hard_cross_entropy(logits, targets, 0.2)
    torch.testing.assert_close(mixed, (1 - share) * soft + share * hard)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_teacher_that_is_certain_gives_no_nan(config):
    targets = torch.tensor([[1.0, 0.0, 0.0]])
    logits = torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.bfloat16)
    assert torch.isfinite(DistillationLoss(config, lambda: targets)(logits, targets)).all()
    assert teacher_entropy(targets).item() == 0


def test_entropy_of_a_uniform_teacher_is_log_three():
    assert teacher_entropy(torch.full((1, 3), 1 / 3)).item() == pytest.approx(math.log(3))


@given(seed=st.integers(0, 1000), num=st.integers(1, 50))
def test_balanced_weights_give_every_class_the_same_mass_and_keep_the_total(seed, num):
    targets = soft_labels(num, seed)
    weighted = (targets * balanced_class_weights(targets)).sum(dim=0)
    torch.testing.assert_close(weighted, torch.full((3,), num / 3), rtol=1e-4, atol=1e-4)


@given(
    match=st.sampled_from([soften, lambda targets, _: one_hot(targets)]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    power=st.floats(0, 4),
    seed=st.integers(0, 1000),
)
def test_balanced_weights_hold_for_what_the_loss_matches_as_its_samples_weigh(match, temperature, power, seed):
    targets = confident_labels(200, seed)
    matched, samples = match(targets, temperature), confidence_weights(targets, power)
    weights = balanced_class_weights(matched, samples)
    mass = (matched * samples[:, None] * weights).sum(dim=0)
    # The loss of certain wrong answers is the weighted mass of the class that was matched.
    present = matched.sum(dim=0) > 0
    expected = torch.where(present, samples.sum() / present.sum(), 0.0)
    torch.testing.assert_close(mass, expected, rtol=1e-3, atol=1e-3)


def test_a_class_that_nobody_has_weighs_nothing():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert balanced_class_weights(targets).tolist() == [1.0, 1.0, 0.0]


@given(seed=st.integers(0, 1000), power=st.floats(0.1, 5))
def test_confident_samples_weigh_more_and_all_of_the_view_weighs_what_it_did(seed, power):
    targets = confident_labels(100, seed)
    # The same wrong answer for all, each of the class that its teacher is surest of.
    logits = torch.zeros(100, 3)
    plain = DistillationLoss(LossConfig(kind="hard"), lambda: targets)(logits, targets)
    weighted = DistillationLoss(LossConfig(kind="hard", confidence_power=power), lambda: targets)(logits, targets)
    shares = weighted / plain
    assert shares.mean().item() == pytest.approx(1, rel=1e-4)
    order = targets.amax(dim=1).argsort()
    assert (shares[order].diff() >= -1e-6).all()
    confidence = targets.amax(dim=1)
    torch.testing.assert_close(shares[0] / shares[1], (confidence[0] / confidence[1]) ** power, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_mean_of_two_ranks_is_the_loss_of_the_global_batch(config):
    logits, targets = some_logits(8, 3), confident_labels(8, 3)
    loss = DistillationLoss(config, lambda: confident_labels(100, 4))
    halves = [loss(logits[part], targets[part]).mean() for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, loss(logits, targets).mean())


@given(seed=st.integers(0, 10**6))
def test_with_neutral_masked_the_loss_is_that_of_keras_on_probabilities_multiplied_by_the_papers_mask(seed):
    generator = np.random.default_rng(seed)
    logits = torch.tensor(generator.normal(0, 1, (16, 3)), requires_grad=True)
    classes = torch.tensor(generator.choice([0, 2], 16))
    # Keras's sparse_categorical_crossentropy: clipped, logarithms, and a softmax over those.
    masked = logits.softmax(dim=1) * torch.tensor([1, 1e-7, 1])
    expected = torch.nn.functional.cross_entropy(masked.clamp(1e-7, 1 - 1e-7).log(), classes, reduction="none")
    for kind in ("hard", "soft"):
        loss = DistillationLoss(LossConfig(kind=kind, neutral="masked"), lambda: torch.eye(3)[classes])
        found = loss(logits, torch.eye(3)[classes])
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        [gradient] = torch.autograd.grad(found.sum(), logits)
        assert gradient[:, 1].abs().max() == 0


def test_a_neutral_label_cannot_be_masked():
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.5, 0.3]])
    with pytest.raises(UserError, match="1 of 2 samples are neutral"):
        DistillationLoss(LossConfig(neutral="masked"), lambda: targets)
    loss = DistillationLoss(LossConfig(neutral="masked"), lambda: targets[1:])
    expected = -(0.4 * math.log(0.25) + 0.6 * math.log(0.75))
    found = loss(torch.tensor([[0.1, 0.7, 0.3]]).log(), targets[1:])
    assert found.item() == pytest.approx(expected, rel=1e-5)
