"""What training a student costs: floating-point operations, bytes of memory a rank, and how much of a device it uses.

Nothing is computed for it: models are run on tensors that have shapes and no content, so a ViT-L takes a second.
"""

import logging
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)

PASSES = 3
"""A training step of an image costs so many forward passes: the backward pass makes two products of each one's size,
one for the gradient of the weights and one for that of the activations (Kaplan et al. 2020, section 2.1)."""
PASSES_RECOMPUTED = 4
"""The same with gradient checkpointing, which does the forward pass twice (Chen et al. 2016)."""

MASTER_BYTES = 4
MOMENT_BYTES = 8
AVERAGE_BYTES = 4
"""Bytes a parameter of what the optimizer holds in float32: the weights, Adam's two moments, the moving average."""
BUCKET_ELEMENTS = 50_000_000
"""`reduce_bucket_size` of configs/deepspeed."""


def num_parameters(model: torch.nn.Module) -> int:
    """All weights, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


# What models raise that look at the values of tensors, or make some of their own in mid-pass.
_NEEDS_CONTENT = (RuntimeError, TypeError, ValueError, AssertionError)


def forward_flops(model: torch.nn.Module, size: int) -> int | None:
    """Floating-point operations of one forward pass of one image of `size` by `size` pixels; an addition is one, too.

    None for a model that does not run on tensors without content.

    Matrix products, convolutions and attention are counted, as in other people's figures; the rest is about 1 %.
    The backward pass is not counted but taken as twice as much (`PASSES`): torch's counter takes that of a depthwise
    convolution for one over all channels.
    """
    fakes = {name: value.detach().to("meta") for name, value in _named_tensors(model)}
    try:
        with _evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(model, fakes, (torch.empty(1, 3, size, size, device="meta"),))
    except _NEEDS_CONTENT as error:
        log.warning("the student's operations cannot be counted: %s", error)
        return None
    return int(counter.get_total_flops())


def activation_bytes(model: torch.nn.Module, size: int, batch_size: int, dtype: torch.dtype) -> int | None:
    """Most bytes that a forward and backward pass of a batch holds besides weights and their gradients.

    With fused attention, which every GPU of today has; gradient checkpointing as the model is set. Allocators waste
    some on top. None for a model that does not run on tensors without content.
    """
    try:
        return _most_bytes(model, size, batch_size, dtype)
    except _NEEDS_CONTENT as error:
        log.warning("the student's activations cannot be counted: %s", error)
        return None


def _most_bytes(model: torch.nn.Module, size: int, batch_size: int, dtype: torch.dtype) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {}
        for name, value in _named_tensors(model):
            of_dtype = dtype if value.is_floating_point() else value.dtype
            fakes[f"model.{name}"] = torch.empty(value.shape, dtype=of_dtype, requires_grad=value.requires_grad)
        for value in fakes.values():
            if value.requires_grad:
                value.register_post_accumulate_grad_hook(_drop_gradient)
        pixels = torch.empty(batch_size, 3, size, size, dtype=dtype)
        with _LiveBytes(besides=fakes.values()) as live:
            functional_call(_ForwardAndBackward(model), fakes, (pixels,))
    return live.most


class _ForwardAndBackward(torch.nn.Module):
    """Both in one call, since checkpointed blocks run again in the backward pass and need the fake weights then."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> None:
        self.model(pixels).float().logsumexp(dim=1).mean().backward()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it, from making to the end of their storage.

    Those that are there `besides` would else be counted with the first view of them.
    """

    def __init__(self, besides: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in besides)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return made

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Batch norm refuses to learn from a single value, such as that of one image."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes that one rank holds at most."""

    weights: float
    """As the forward pass uses them."""
    gradients: float
    optimizer: float
    """Weights, moments and moving average in float32."""
    buckets: float
    """What ranks exchange gradients in."""
    passes: float
    """Activations; or the optimizer's copy of the gradients in float32, which comes after them and may be more."""

    @property
    def total(self) -> float:
        """Of all of it."""
        return self.weights + self.gradients + self.optimizer + self.buckets + self.passes


def rank_memory(
    num_weights: int,
    *,
    stage: int,
    world_size: int,
    has_average: bool,
    activations: float,
    bucket_elements: int,
    weight_bytes: int = 2,
) -> RankMemory:
    """Memory of a rank with Adam, at a ZeRO stage, by Rajbhandari et al. 2020, figure 1.

    Of P parameters over N ranks, in mixed precision: weights 2P and gradients 2P bytes (`weight_bytes`), K·P of the
    optimizer's in float32, K = 12, or 16 with a moving average. Stage 1 divides the optimizer's by N, stage 2 the
    gradients too, stage 3 the weights too. To it come buckets (`reduce_bucket_size` of DeepSpeed's config) and
    activations.
    """
    # Without ZeRO, what is trained in float32 is its own master.
    master = MASTER_BYTES if weight_bytes < MASTER_BYTES or stage else 0
    per_weight = master + MOMENT_BYTES + (AVERAGE_BYTES if has_average else 0)
    share = [num_weights / (world_size if stage >= divided_from else 1) for divided_from in (1, 2, 3)]
    return RankMemory(
        weights=weight_bytes * share[2],
        gradients=weight_bytes * share[1],
        optimizer=per_weight * share[0],
        buckets=weight_bytes * bucket_elements if stage else 0,
        passes=max(activations, MASTER_BYTES * share[0]),
    )


PEAK_TFLOPS = {
    "A10": 125, "A30": 165, "A40": 149.7, "A100": 312, "A800": 312, "B200": 2250,
    "GH200": 989, "H100": 989, "H100 NVL": 835, "H100 PCIe": 756, "H200": 989, "H200 NVL": 835, "H800": 989,
    "L4": 121, "L40": 181, "L40S": 362, "RTX 4090": 165, "T4": 65, "V100": 125, "V100 PCIE": 112,
}  # fmt: skip
"""Of GPUs, by words of their names: peak of dense 16-bit products (bf16; of V100 and T4, which have none, fp16) in
TFLOP/s, from NVIDIA's data sheets (nvidia.com/en-us/data-center). Where those say "with sparsity", it is half."""


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s in 16 bits of a GPU by the name that its driver gives; None for one that is not known.

    None for CPUs as well: nobody states theirs, and one that is measured at the start would hang on what else runs.
    """
    words = set(re.findall(r"\w+", device_name))
    if "MIG" in words:  # a part of a GPU
        return None
    known = [name for name in PEAK_TFLOPS if words >= set(name.split())]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


def device_peak() -> float | None:
    """Peak FLOP/s in 16 bits of the device that this rank trains on; None if it is not known."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_initialized() else None


def utilisation(images_per_second: float, flops_per_image: float, peak: float) -> float:
    """MFU: the share of the peak that a model's own operations are (Chowdhery et al. 2022, appendix B).

    Images and peak are of one device, or of all together. What gradient checkpointing does twice counts once, so
    `flops_per_image` is `PASSES` forward passes.
    """
    return images_per_second * flops_per_image / peak
