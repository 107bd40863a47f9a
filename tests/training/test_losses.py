import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.training.config import LossConfig
from xmodal.training.losses import balanced_class_weights, matched_targets, sample_losses, teacher_entropy


def soft_labels(num: int, seed: int) -> torch.Tensor:
    return torch.rand(num, 3, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def test_soft_cross_entropy_is_that_of_torch():
    logits, targets = torch.randn(16, 3), soft_labels(16, 0)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(sample_losses(logits, targets, LossConfig()), expected)


def test_hard_cross_entropy_with_smoothing_is_that_of_torch():
    logits, targets = torch.randn(16, 3), soft_labels(16, 1)
    config = LossConfig(kind="hard", label_smoothing=0.2)
    expected = torch.nn.functional.cross_entropy(logits, targets.argmax(dim=1), label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(sample_losses(logits, targets, config), expected)


def test_soft_loss_is_least_where_the_student_agrees_with_the_teacher_whatever_the_temperature():
    targets = soft_labels(4, 2)
    for temperature in (0.5, 1.0, 4.0):
        logits = targets.log().requires_grad_()
        sample_losses(logits, targets, LossConfig(temperature=temperature)).sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-5


def test_a_teacher_that_is_certain_gives_no_nan():
    targets = torch.tensor([[1.0, 0.0, 0.0]])
    logits = torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.bfloat16)
    for config in (LossConfig(), LossConfig(temperature=3.0), LossConfig(kind="hard")):
        assert torch.isfinite(sample_losses(logits, targets, config)).all()
    assert teacher_entropy(targets).item() == 0


def test_entropy_of_a_uniform_teacher_is_log_three():
    assert teacher_entropy(torch.full((1, 3), 1 / 3)).item() == pytest.approx(math.log(3))


@given(seed=st.integers(0, 1000), num=st.integers(1, 50))
def test_balanced_weights_give_every_class_the_same_mass_and_keep_the_total(seed, num):
    targets = soft_labels(num, seed)
    weighted = (targets * balanced_class_weights(targets)).sum(dim=0)
    torch.testing.assert_close(weighted, torch.full((3,), num / 3), rtol=1e-4, atol=1e-4)


@given(
    config=st.sampled_from(
        [LossConfig(), LossConfig(temperature=4.0), LossConfig(temperature=0.5), LossConfig(kind="hard")]
    ),
    seed=st.integers(0, 1000),
)
def test_balanced_weights_hold_for_what_the_loss_matches(config, seed):
    targets = soft_labels(200, seed).pow(3)
    matched = matched_targets(targets / targets.sum(dim=1, keepdim=True), config)
    weights = balanced_class_weights(matched)
    # The loss of certain wrong answers is the weighted mass of the class that was matched.
    torch.testing.assert_close((matched * weights).sum(dim=0), torch.full((3,), 200 / 3), rtol=1e-3, atol=1e-3)


def test_a_class_that_nobody_has_weighs_nothing():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert balanced_class_weights(targets).tolist() == [1.0, 1.0, 0.0]


def test_the_mean_of_two_ranks_is_the_loss_of_the_global_batch():
    logits, targets = torch.randn(8, 3), soft_labels(8, 3)
    weights = torch.tensor([2.0, 0.5, 1.0])
    whole = sample_losses(logits, targets, LossConfig(), weights).mean()
    halves = [
        sample_losses(logits[part], targets[part], LossConfig(), weights).mean() for part in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)
