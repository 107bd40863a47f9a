import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.students import StudentConfig, create_student
from xmodal.training.config import OptimizerConfig
from xmodal.training.ema import KEY, averages_as_weights, decay_of_step
from xmodal.training.engine import create_optimizer

STUDENT = StudentConfig(
    model="vit_tiny_patch16_224",
    pretrained=False,
    model_args={"img_size": 8, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1},
)


def trained(kind: str, rates: list[float], decay: float) -> tuple[torch.nn.Module, torch.optim.Optimizer, list]:
    """A small student after a step at each rate, and its weights before the first and after each."""
    torch.manual_seed(0)
    model = create_student(STUDENT)
    optimizer = create_optimizer(model, OptimizerConfig(kind=kind, ema_decay=decay))
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    history = [[weight.detach().clone() for weight in order]]
    for step, rate in enumerate(rates):
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"], group["ema_decay"] = rate, decay_of_step(step, decay)
        optimizer.step()
        optimizer.zero_grad()
        history.append([weight.detach().clone() for weight in order])
    return model, optimizer, history


@pytest.mark.parametrize("kind", ["adamw", "radam"])
@settings(max_examples=10)
@given(rates=st.lists(st.floats(1e-4, 0.1), min_size=1, max_size=8), decay=st.floats(0.01, 0.99))
def test_it_is_the_weighted_mean_of_all_weights_so_far(kind, rates, decay):
    _, optimizer, history = trained(kind, rates, decay)
    expected = history[0]
    for step, weights in enumerate(history[1:]):
        share = min(decay, (1 + step) / (10 + step))
        expected = [share * mean + (1 - share) * weight for mean, weight in zip(expected, weights, strict=True)]
    averages = [state[KEY] for state in optimizer.state.values()]
    for average, mean in zip(averages, expected, strict=True):
        torch.testing.assert_close(average, mean)


def test_the_averages_stand_in_for_the_weights_only_for_a_while():
    _, optimizer, history = trained("adamw", [0.1] * 5, 0.9)
    weights, averages = list(optimizer.state), [state[KEY].clone() for state in optimizer.state.values()]
    with averages_as_weights(optimizer):
        assert all(map(torch.equal, weights, averages))
    assert all(map(torch.equal, weights, history[-1]))
    assert all(torch.equal(state[KEY], mean) for state, mean in zip(optimizer.state.values(), averages, strict=True))


def test_a_weight_that_has_never_stepped_is_its_own_average():
    model, optimizer, _ = trained("adamw", [], 0.9)
    before = [weight.clone() for weight in model.parameters()]
    with averages_as_weights(optimizer):
        assert all(map(torch.equal, model.parameters(), before))


@given(step=st.integers(0, 10**7), decay=st.floats(0, 1, exclude_max=True))
def test_its_memory_is_never_longer_than_asked_nor_than_the_run(step, decay):
    share = decay_of_step(step, decay)
    assert 0 <= share <= decay
    assert 1 / (1 - share) <= (step + 10) / 9 * (1 + 1e-9)
    assert decay_of_step(step + 1, decay) >= share
