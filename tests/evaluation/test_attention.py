"""The maths of where a student looked, and what of it a student of known attention must show."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from xmodal.evaluation.attention import look, patch_heat, readable_attention, rollout, weighted_by_gradient

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}
GRID = (4, 4)


def tiny(name: str = "vit_tiny_patch16_224", **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    student = timm.create_model(name, pretrained=False, **{**TINY, **arguments}).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return student


def random_attentions(layers: int, heads: int, tokens: int, seed: int) -> list[np.ndarray]:
    """Rows with the sum 1, as softmax leaves them."""
    generator = np.random.default_rng(seed)
    return [generator.dirichlet(np.full(tokens, 0.3), size=(heads, tokens)) for _ in range(layers)]


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(0, 1000))
def test_rollout_is_what_a_plain_loop_over_all_ways_gives_and_each_row_sums_to_1(layers, heads, tokens, seed):
    attentions = random_attentions(layers, heads, tokens, seed)
    expected = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for attention in attentions:
        step = [
            [sum(attention[head][i][j] for head in range(heads)) / heads / 2 + (i == j) / 2 for j in range(tokens)]
            for i in range(tokens)
        ]
        expected = [
            [sum(step[i][k] * expected[k][j] for k in range(tokens)) for j in range(tokens)] for i in range(tokens)
        ]
    found = rollout(attentions)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_weighting_by_gradients_is_what_a_plain_loop_gives_and_is_not_negative(layers, heads, tokens, seed):
    attentions = random_attentions(layers, heads, tokens, seed)
    generator = np.random.default_rng(seed)
    gradients = [generator.normal(size=attention.shape) for attention in attentions]
    relevance = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for attention, gradient in zip(attentions, gradients, strict=True):
        kept = [
            [
                sum(max(0.0, attention[head][i][j] * gradient[head][i][j]) for head in range(heads)) / heads
                for j in range(tokens)
            ]
            for i in range(tokens)
        ]
        relevance = [
            [relevance[i][j] + sum(kept[i][k] * relevance[k][j] for k in range(tokens)) for j in range(tokens)]
            for i in range(tokens)
        ]
    found = weighted_by_gradient(attentions, gradients)
    np.testing.assert_allclose(found, np.array(relevance) - np.eye(tokens), atol=1e-9)
    assert (found >= 0).all()


def test_heat_is_asked_of_the_class_token_or_of_the_mean_of_the_patches():
    tokens = np.arange(36.0).reshape(6, 6)
    by_class = patch_heat(tokens, 2, (2, 2), by_class_token=True)
    np.testing.assert_allclose(by_class, np.array([[2, 3], [4, 5]]) / 14)
    by_mean = patch_heat(tokens, 2, (2, 2), by_class_token=False)
    np.testing.assert_allclose(by_mean, np.array([[23, 24], [25, 26]]) / 98)
    assert patch_heat(np.zeros((4, 4)), 0, (2, 2), by_class_token=False).sum() == 0


def attend_to(student: torch.nn.Module, token: int) -> None:
    """Let all tokens of the first layer look at one place: its key alone answers all queries."""
    attention = student.blocks[0].attn
    width = attention.qkv.in_features
    with torch.no_grad():
        student.pos_embed.zero_()
        # One channel that nothing else uses says which place it is; a layer's normalisation is switched off.
        student.pos_embed[0, token, 0] = 50.0
        student.blocks[0].norm1 = torch.nn.Identity()
        attention.qkv.weight.zero_()
        attention.qkv.bias.zero_()
        attention.qkv.bias[:width] = 1.0
        attention.qkv.weight[width : 2 * width, 0] = 1.0
        # Values differ from place to place, so that the output depends on where it looks.
        attention.qkv.weight[2 * width :] = 0.1 * torch.randn(width, width)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}],
    ids=["class token", "registers", "no prefix", "mean of the patches"],
)
@pytest.mark.parametrize("patch", [(0, 3), (2, 1)])
def test_a_student_that_looks_at_one_patch_is_shown_to_do_so(arguments, patch):
    student = tiny(**{"depth": 1, "global_pool": "token", **arguments})
    place = patch[0] * GRID[1] + patch[1]
    attend_to(student, student.pos_embed.shape[1] - GRID[0] * GRID[1] + place)
    inputs = torch.randn(1, 3, 32, 32)
    found = look(student, inputs, label=None, method="rollout")
    assert found.heat.shape == GRID
    assert found.heat.sum() == pytest.approx(1)
    assert np.unravel_index(found.heat.argmax(), GRID) == patch
    if student.num_prefix_tokens and arguments.get("global_pool") != "avg":
        # Half of it is the class token itself; of what came from patches, all came from this one.
        assert found.heat[patch] == pytest.approx(1, abs=1e-3)


def test_a_layers_weights_are_those_of_its_softmax_and_fused_kernels_come_back():
    student = tiny()
    inputs = torch.randn(2, 3, 32, 32)
    fused = [block.attn.fused_attn for block in student.blocks]
    with torch.inference_mode():
        before = student(inputs)
    with torch.inference_mode(), readable_attention(student) as read:
        during = student(inputs)
    assert [tuple(weights.shape) for weights in read] == [(2, 2, 17, 17)] * 3
    for weights in read:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 17))
    torch.testing.assert_close(during, before, atol=1e-4, rtol=1e-4)
    assert [block.attn.fused_attn for block in student.blocks] == fused
    with pytest.raises(ValueError, match="unpack"), readable_attention(student):
        student(torch.zeros(1))
    assert [block.attn.fused_attn for block in student.blocks] == fused
    assert not any(block.attn.attn_drop._forward_hooks for block in student.blocks)


def test_gradients_depend_on_the_class_and_rollout_does_not():
    student, inputs = tiny(), torch.randn(1, 3, 32, 32)
    by_class = [look(student, inputs, label=label, method=None) for label in range(3)]
    assert {found.method for found in by_class} == {"gradient"}
    assert all(found.heat.sum() == pytest.approx(1) and (found.heat >= 0).all() for found in by_class)
    assert not np.allclose(by_class[0].heat, by_class[2].heat)
    predicted = int(by_class[0].probabilities.argmax())
    unasked = look(student, inputs, label=None, method="gradient")
    np.testing.assert_allclose(unasked.heat, by_class[predicted].heat)
    with torch.inference_mode():
        expected = student(inputs)[0].softmax(dim=0).numpy()
    np.testing.assert_allclose(unasked.probabilities, expected, atol=1e-5)
    assert look(student, inputs, label=None, method=None).method == "rollout"
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_weight_whose_gradient_is_asked_for_is_that_of_differences():
    """Raising an attention weight by a little raises the output by the gradient times that."""
    student, inputs = tiny(depth=1), torch.randn(1, 3, 32, 32)
    with torch.enable_grad(), readable_attention(student) as read:
        logits = student(inputs)[0]
    (gradient,) = torch.autograd.grad(logits[1], read)

    def moved(by: float) -> float:
        def add(module, arguments, weights):
            raised = weights.clone()
            raised[0, 1, 0, 5] += by
            return raised

        hook = student.blocks[0].attn.attn_drop.register_forward_hook(add)
        student.blocks[0].attn.fused_attn = False
        try:
            with torch.no_grad():
                return float(student.double()(inputs.double())[0, 1])
        finally:
            hook.remove()

    step = 1e-4
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(float(gradient[0, 1, 0, 5]), rel=1e-2, abs=1e-5)


SMALL_SWIN = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [("resnet10t", 64, {}), ("tf_efficientnet_lite0", 64, {}), ("swin_tiny_patch4_window7_224", 224, SMALL_SWIN)],
)
def test_grad_cam_is_for_those_without_attention_between_all_patches(name, size, arguments):
    torch.manual_seed(0)
    student = timm.create_model(name, pretrained=False, num_classes=3, **arguments).eval()
    found = look(student, torch.randn(1, 3, size, size), label=2, method=None)
    assert (found.method, found.heat.ndim) == ("grad_cam", 2)
    assert found.heat.shape == (size // 32, size // 32)
    assert (found.heat >= 0).all()
    with pytest.raises(UserError, match="no attention between all of its patches, which rollout is about"):
        look(student, torch.randn(1, 3, size, size), label=None, method="rollout")


class Bright(torch.nn.Module):
    """Its positive output is the brightness of one corner."""

    def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(inputs, 8)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        positive = features[:, 0].mean(dim=(1, 2))
        return torch.stack([-positive, 0 * positive, positive], dim=1)


def test_grad_cam_shows_where_the_class_is():
    inputs = torch.zeros(1, 3, 32, 32, requires_grad=True)
    with torch.no_grad():
        inputs[0, 0, 8:16, 24:] = 1
    found = look(Bright(), inputs, label=2, method=None)
    assert np.argwhere(found.heat).tolist() == [[1, 3]]
    assert found.heat[1, 3] == 1
    assert look(Bright(), inputs, label=0, method=None).heat.sum() == 0
