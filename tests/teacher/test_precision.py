import pytest
import torch
from torch import nn

from xmodal.teacher.precision import cpu_is_fast_in_bf16, resolve_precision, speed_up_linear_layers


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16 vnmi\n", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16 vnmi\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 amx_bf16\n\nflags\t\t: avx2\n", True),
        ("flags : avx2 amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags : avx2 avx512f avx512_vnni\n", False),
        ("model name : avx512_bf16\nflags : avx2\n", False),
        ("", False),
    ],
)
def test_a_processor_is_fast_in_bf16_if_its_maker_and_flags_say_so(cpuinfo, expected):
    assert cpu_is_fast_in_bf16(cpuinfo) == expected


def test_auto_is_bf16_where_the_device_has_it_and_what_is_asked_for_is_obeyed():
    assert resolve_precision("auto", device="cpu", has_bf16=True) == "bf16"
    assert resolve_precision("auto", device="cuda", has_bf16=False) == "fp32"
    assert resolve_precision("fp32", device="cpu", has_bf16=True) == "fp32"
    assert resolve_precision("bf16", device="cpu", has_bf16=False) == "bf16"
    assert resolve_precision("fp16", device="cuda", has_bf16=True) == "fp16"


@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_linear_layers_give_what_the_usual_ones_give(bias):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(33, 65, bias=bias), nn.GELU(), nn.Linear(65, 3, bias=bias))
    texts = torch.randn(5, 7, 33)
    with torch.inference_mode():
        expected = layers(texts)
        speed_up_linear_layers(layers)
        torch.testing.assert_close(layers(texts), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layers(texts[:, 0]), expected[:, 0], rtol=1e-5, atol=1e-5)
