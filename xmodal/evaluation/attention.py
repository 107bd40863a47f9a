"""Where a student looked: the shares of its patches in what it said, from its attention or its last feature map."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from shards.errors import UserError
from xmodal.evaluation.predictor import check_finite

Method = Literal["rollout", "gradient", "grad_cam"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a student looked in one picture, and what it said."""

    heat: np.ndarray
    """float64 `(rows, columns)` over the square that the student saw, not negative, with the sum 1; or all 0."""
    probabilities: np.ndarray
    """float64 `(classes,)`."""
    method: Method


def rollout(attentions: Sequence[np.ndarray]) -> np.ndarray:
    """Attention rollout (Abnar & Zuidema 2020): `(heads, n, n)` of each layer, the first first → `(n, n)`.

    Row i says how much of output token i came from each input token, half of each layer's output being its input; each
    row has the sum 1.
    """
    identity = np.eye(attentions[0].shape[-1])
    shares = identity
    for attention in attentions:
        shares = (attention.mean(axis=0) + identity) / 2 @ shares
    return shares


def weighted_by_gradient(attentions: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Attention weighted by the gradient of one output (Chefer et al. 2021, "Generic attention-model explainability").

    Both `(heads, n, n)` of each layer, the first first → `(n, n)`: how relevant each input token was, by way of output
    token i, beyond itself; not negative.
    """
    identity = np.eye(attentions[0].shape[-1])
    relevance = identity
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (attention * gradient).clip(min=0).mean(axis=0) @ relevance
    return relevance - identity


def patch_heat(tokens: np.ndarray, num_prefix: int, grid: tuple[int, int], *, by_class_token: bool) -> np.ndarray:
    """Shares of the patches `grid` of `(n, n)` tokens, the first `num_prefix` of which are no patches; the sum is 1.

    What is asked is what went into the class token, which is the first; or, where the head sees the mean of the
    patches, into these.
    """
    rows = tokens[:1] if by_class_token else tokens[num_prefix:]
    return _shares(rows[:, num_prefix:].mean(axis=0).reshape(grid))


def look(student: torch.nn.Module, inputs: torch.Tensor, *, label: int | None, method: Method | None) -> Look:
    """Where a student in evaluation mode looked, in normalised `inputs` `(1, 3, size, size)`.

    `label` is the class that is asked for, None for the predicted one. Without a `method` it is rollout for a
    transformer, and gradients where a class is asked for, which rollout knows nothing of; Grad-CAM (Selvaraju et al.
    2017) for what has a feature map at its end and no attention between all patches. Raises UserError where the method
    is not one for this student, and where its outputs are no finite numbers.
    """
    with torch.enable_grad(), readable_attention(student) as read:
        features = student.forward_features(inputs)  # type: ignore[operator]
        logits = student.forward_head(features)[0]  # type: ignore[operator]
    probabilities = logits.detach().double().softmax(dim=0).cpu().numpy()
    check_finite(bool(np.isfinite(probabilities).all()))
    asked = logits[int(logits.argmax()) if label is None else label]
    grid = _patch_grid(student, read)
    if grid is None:
        if method == "rollout" or not isinstance(features, torch.Tensor) or features.dim() != 4:
            kind = type(student).__name__
            raise UserError(
                f"student: a {kind} has no attention between all of its patches, which {method or 'explain'} is about",
                "leave out --method, and it is Grad-CAM where the student has a feature map; or give a ViT",
            )
        return Look(heat=_grad_cam(student, features, asked), probabilities=probabilities, method="grad_cam")
    method = method or ("rollout" if label is None else "gradient")
    attentions = [attention[0].detach().double().cpu().numpy() for attention in read]
    if method == "rollout":
        tokens = rollout(attentions)
    else:
        gradients = torch.autograd.grad(asked, read)
        tokens = weighted_by_gradient(attentions, [gradient[0].double().cpu().numpy() for gradient in gradients])
    num_prefix = len(tokens) - grid[0] * grid[1]
    by_class_token = num_prefix > 0 and getattr(student, "global_pool", "token") == "token"
    heat = patch_heat(tokens, num_prefix, grid, by_class_token=by_class_token)
    return Look(heat=heat, probabilities=probabilities, method=method)


@contextmanager
def readable_attention(student: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the attention weights, `(batch, heads, n, n)`, of each layer of a timm model that is called meanwhile.

    Its fused kernels, which never hold all weights, are off for so long.
    """
    found = [module for module in student.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")]
    layers = cast(list[Any], found)
    was_fused = [layer.fused_attn for layer in layers]
    read: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, weights: torch.Tensor) -> None:
        read.append(weights)

    # What drops some weights in training is given all of them.
    hooks = [layer.attn_drop.register_forward_hook(keep) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield read
    finally:
        for layer, fused in zip(layers, was_fused, strict=True):
            layer.fused_attn = fused
        for hook in hooks:
            hook.remove()


def _patch_grid(student: torch.nn.Module, read: Sequence[torch.Tensor]) -> tuple[int, int] | None:
    """Rows and columns of the patches, where each layer's attention was between all of them; else None."""
    patches = getattr(student, "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    if not read or grid is None:
        return None
    num_tokens = read[0].shape[-1]
    if num_tokens < grid[0] * grid[1] or any(one.shape[-2:] != (num_tokens, num_tokens) for one in read):
        return None
    return (grid[0], grid[1]) if all(len(one) == 1 for one in read) else None


def _grad_cam(student: torch.nn.Module, features: torch.Tensor, asked: torch.Tensor) -> np.ndarray:
    (gradient,) = torch.autograd.grad(asked, features)
    # timm says so of models whose channels come last.
    channels = (3,) if str(getattr(student, "output_fmt", "NCHW")).endswith("NHWC") else (1,)
    places = (1, 2) if channels == (3,) else (2, 3)
    weighted = (features.detach() * gradient.mean(dim=places, keepdim=True)).sum(dim=channels)
    return _shares(weighted[0].clamp(min=0).double().cpu().numpy())


def _shares(heat: np.ndarray) -> np.ndarray:
    total = heat.sum()
    return heat / total if total > 0 else np.zeros_like(heat)
