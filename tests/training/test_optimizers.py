import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.students import StudentConfig, create_student
from xmodal.training.config import OptimizerConfig
from xmodal.training.engine import create_optimizer


def small_student() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    config = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=sizes)
    return create_student(config).double()


def trace(config: OptimizerConfig, gradients: np.ndarray, rate: float) -> list[float]:
    """One weight, before all and after each step with a given gradient."""
    model = small_student()
    weight = model.get_parameter("blocks.0.mlp.fc1.weight")
    optimizer = create_optimizer(model, config)
    weights = [weight[0, 0].item()]
    for gradient in gradients:
        weight.grad = torch.full_like(weight, float(gradient))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        weights.append(weight[0, 0].item())
    return weights


def rectified_adam(weight: float, gradients: np.ndarray, rate: float, weight_decay: float) -> list[float]:
    """Algorithm 2 of Liu et al. 2020, with the decay of the weights themselves (Loshchilov and Hutter 2019)."""
    beta1, beta2, mean, square = 0.9, 0.999, 0.0, 0.0
    limit = 2 / (1 - beta2) - 1
    weights = [weight]
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


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rate=st.floats(1e-5, 1e-1), weight_decay=st.floats(0, 0.5))
def test_radam_is_that_of_its_paper(seed, rate, weight_decay):
    gradients = np.random.default_rng(seed).normal(0.3, 1, 12)
    weights = trace(OptimizerConfig(kind="radam", weight_decay=weight_decay), gradients, rate)
    expected = rectified_adam(weights[0], gradients, rate, weight_decay)
    assert weights == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "radam"])
def test_a_new_optimizer_stands_still_until_it_is_given_a_rate(kind):
    weights = trace(OptimizerConfig(kind=kind), np.ones(3), 0.0)
    assert weights == [weights[0]] * 4
