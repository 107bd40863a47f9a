"""The optimizers by themselves, and under two ranks of the launcher."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.training.config import OptimizerConfig
from xmodal.training.engine import create_optimizer


def trace(config: OptimizerConfig, gradients: np.ndarray, rate: float) -> list[float]:
    """The one weight of a layer after each step with a given gradient."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    optimizer = create_optimizer(model, config)
    weights = []
    for gradient in gradients:
        model.weight.grad = torch.full((1, 1), float(gradient), dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        weights.append(model.weight.item())
    return weights


def rectified_adam(gradients: np.ndarray, rate: float, weight_decay: float) -> list[float]:
    """Algorithm 2 of Liu et al. 2020, with the decay of the weights themselves (Loshchilov and Hutter 2019)."""
    beta1, beta2, weight, mean, square = 0.9, 0.999, 1.0, 0.0, 0.0
    limit = 2 / (1 - beta2) - 1
    weights = []
    for step, gradient in enumerate(gradients, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        weight -= rate * weight_decay * weight
        length = limit - 2 * step * beta2**step / (1 - beta2**step)
        update = mean / (1 - beta1**step)
        if length > 5:
            rectification = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5
            update *= rectification / ((square / (1 - beta2**step)) ** 0.5)
        weight -= rate * update
        weights.append(weight)
    return weights


@given(seed=st.integers(0, 1000), rate=st.floats(1e-5, 1e-1), weight_decay=st.floats(0, 0.5))
def test_radam_is_that_of_its_paper(seed, rate, weight_decay):
    gradients = np.random.default_rng(seed).normal(0.3, 1, 12)
    config = OptimizerConfig(kind="radam", weight_decay=weight_decay)
    assert trace(config, gradients, rate) == pytest.approx(
        rectified_adam(gradients, rate, weight_decay), rel=1e-4, abs=1e-6
    )


def test_a_new_optimizer_stands_still_until_it_is_given_a_rate():
    for kind in ("adamw", "radam"):
        optimizer = create_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(kind=kind))
        assert {group["lr"] for group in optimizer.param_groups} == {0.0}
