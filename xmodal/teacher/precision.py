"""In which numbers a teacher computes, and the products of matrices that are fast in them on processors."""

from pathlib import Path

import torch
from torch import Tensor, nn

from shards.errors import UserError
from xmodal.teacher.teacher import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, *, device: str, has_bf16: bool) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` is bf16 where the device computes in it. Raises UserError for fp16 on a CPU."""
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "fp16" and device == "cpu":
        # Measured: four times as slow as fp32, on a processor that has bf16 but no fp16.
        raise UserError(
            "teacher.precision: fp16: there is no GPU, and processors compute in it several times slower than in fp32",
            "give --teacher.precision auto",
        )
    return precision


def computes_in_bf16(device: str) -> bool:
    """Whether the device has bf16 arithmetic that is faster than fp32: emulated, it is slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return cpu_is_fast_in_bf16(Path("/proc/cpuinfo").read_text())
    except OSError:
        return False


def cpu_is_fast_in_bf16(cpuinfo: str) -> bool:
    """Whether a processor that Linux describes so multiplies matrices faster in bf16 than in fp32."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value)
    flags = fields.get("flags", fields.get("Features", "")).split()  # of x86, of ARM
    fast = {"amx_bf16", "bf16"}
    # On Intel's, the bf16 instructions of AVX-512 do no more than those of fp32: measured (without AMX, as a virtual
    # machine may see them), 145 GFLOP/s and 239.
    if fields.get("vendor_id", "").strip() != "GenuineIntel":
        fast.add("avx512_bf16")
    return not fast.isdisjoint(flags)


class _OneDnnLinear(nn.Linear):
    """A linear layer by oneDNN instead of MKL, which takes twice the time on processors that are not of its maker."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def speed_up_linear_layers(model: nn.Module) -> None:
    """Compute the linear layers of a model in fp32 on an x86 processor by oneDNN; bf16 goes that way by itself.

    The result differs in the last bits of fp32 only. Changes nothing where this torch cannot do it.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return
    try:
        with torch.inference_mode():
            _OneDnnLinear(2, 2)(torch.zeros(1, 2))
    except (AttributeError, RuntimeError, TypeError):  # an operator that torch promises to nobody
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDnnLinear
