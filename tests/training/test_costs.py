"""What a student costs, beside figures that others have published and what DeepSpeed really holds."""

import json

import pytest
import torch
from launchers import free_port, start_program

from xmodal.students import PRESETS, StudentConfig, create_student
from xmodal.training.costs import (
    PASSES,
    activation_bytes,
    forward_flops,
    num_parameters,
    peak_flops,
    rank_memory,
    utilisation,
)


def without_content(name: str, **settings) -> torch.nn.Module:
    with torch.device("meta"):
        return create_student(StudentConfig(model=name, pretrained=False, **settings))


# GMAC of one image, with a head of 1000 classes: timm's results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv.
GMACS = {"ViT_B16": 17.58, "ViT_L16": 61.60}


@pytest.mark.parametrize("preset", GMACS)
def test_forward_flops_are_twice_the_published_products(preset):
    assert forward_flops(without_content(PRESETS[preset].split(".")[0]), 224) / 2e9 == pytest.approx(
        GMACS[preset], rel=2e-3
    )


def test_a_vit_l16_takes_370_gflop_an_image_in_training():
    assert PASSES * forward_flops(without_content("vit_large_patch16_224"), 224) == pytest.approx(370e9, rel=5e-3)


def test_counting_changes_no_model():
    model = create_student(StudentConfig(model="resnet10t", pretrained=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert forward_flops(model, 64) > 0
    assert activation_bytes(model, 64, 2, torch.bfloat16) > 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_activations_of_a_transformer_are_those_of_the_formula():
    # Korthikanti et al. 2022, section 4.1, without dropout's masks and with fused attention: of each layer the inputs
    # of two norms, their outputs, query, key and value, attention's output, and in the MLP two of four times the width.
    model, tokens, width, depth, batch = without_content("vit_base_patch16_224"), 197, 768, 12, 16
    of_layers = batch * tokens * width * 2 * depth * (2 + 2 + 3 + 1 + 2 * 4)
    assert of_layers < activation_bytes(model, 224, batch, torch.bfloat16) < 1.05 * of_layers


def test_gradient_checkpointing_keeps_the_inputs_of_blocks():
    tokens, width, depth, batch = 197, 768, 12, 16
    kept = activation_bytes(
        without_content("vit_base_patch16_224", gradient_checkpointing=True), 224, batch, torch.bfloat16
    )
    inputs = batch * tokens * width * 2 * depth
    whole = activation_bytes(without_content("vit_base_patch16_224"), 224, batch, torch.bfloat16)
    # And one block at a time, with the gradients of its activations.
    assert inputs < kept < inputs + 2 * whole / depth


def test_memory_of_a_rank_is_that_of_the_zero_paper():
    # Figure 1 of Rajbhandari et al. 2020: 7.5 G parameters, 64 ranks, K = 12.
    figure = {0: 120, 1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in figure.items():
        memory = rank_memory(
            7_500_000_000, stage=stage, world_size=64, has_average=False, activations=0, bucket_elements=0
        )
        assert (memory.total - memory.passes) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_memory_of_a_rank_is_what_deepspeed_holds(tmp_path):
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    result = tmp_path / "held.json"
    ranks = [
        start_program("tests/memory_program.py", [str(result)], RANK=str(rank), LOCAL_RANK=str(rank), **job)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert result.exists(), outputs
    measured = json.loads(result.read_text())
    num_weights, bucket_elements = measured.pop("num_weights"), measured.pop("bucket_elements")
    for stage in range(4):
        memory = rank_memory(
            num_weights, stage=stage, world_size=2, has_average=True, activations=0, bucket_elements=bucket_elements
        )
        estimate = memory.weights + memory.gradients + memory.optimizer
        if stage == 1:
            # The paper's stage 1 holds all gradients; with one micro-batch a step, DeepSpeed's holds a share.
            estimate -= memory.gradients / 2
        # Stage 3 keeps its bucket for good, as the others do not; and small weights whole.
        held = measured[str(stage)] - (memory.buckets if stage == 3 else 0)
        assert held == pytest.approx(estimate, rel=0.03), stage


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA A10G", None), ("cpu", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu_is_found_by_its_name(name, tflops):
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


def test_utilisation_is_the_share_of_the_peak():
    # 1,000 images a second of 370 GFLOP on one H100.
    assert utilisation(1000, 370e9, 989e12) == pytest.approx(0.374, abs=5e-4)


def test_parameters_are_counted_once():
    assert num_parameters(without_content("vit_large_patch16_224")) == 303_304_707
