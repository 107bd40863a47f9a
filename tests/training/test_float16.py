"""Training in float16, whose range is small: losses are scaled, and steps that overflow are skipped."""

import json
from pathlib import Path

import pytest
from deepspeed.accelerator import get_accelerator
from launchers import launch, settings, start, steps, wait_for_ranks
from safetensors import safe_open

from shards.errors import UserError
from xmodal.training.engine import resolve_deepspeed_config
from xmodal.training.nonfinite import describe


@pytest.mark.skipif(not get_accelerator().is_fp16_supported(), reason="DeepSpeed has no float16 on this processor")
def test_steps_that_overflow_float16_are_skipped_and_counted_and_halve_the_loss_scale(small_view, tmp_path):
    config = json.loads(Path("configs/deepspeed/zero2_fp16.json").read_text())
    config["fp16"] |= {"initial_scale_power": 22, "hysteresis": 1}
    (tmp_path / "fp16.json").write_text(json.dumps(config))
    done = launch("python", settings(small_view, tmp_path / "run", f"--deepspeed={tmp_path / 'fp16.json'}"))
    assert done.returncode == 0, done.stdout
    lines = steps(tmp_path / "run")
    skipped = lines[-1]["skipped"]
    assert 0 < skipped < len(lines)
    first, last = lines[0], lines[-1]
    assert (first["grad_norm"], first["skipped"]) == (None, 1)
    assert last["loss_scale"] * 2**skipped == first["loss_scale"] * 2
    # Not that of the scaled gradients.
    assert 0 < last["grad_norm"] < 100
    said = f"a gradient is too large for float16, the loss scale is now {first['loss_scale']:g}; of the samples "
    assert f"step 1 was skipped: {said}" in done.stdout
    with safe_open(tmp_path / "run" / "student" / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_on_a_processor_without_float16_deepspeed_refuses_it_in_two_lines(small_view, tmp_path):
    fp16 = "--deepspeed=configs/deepspeed/zero2_fp16.json"
    process = start("python", settings(small_view, tmp_path / "run", fp16), ONEDNN_MAX_CPU_ISA="AVX2")
    (code,), (output,) = wait_for_ranks([process])
    assert code == 2, output
    assert "zero2_fp16.json: DeepSpeed refuses it: Type fp16 is not supported on your device" in output
    assert "Traceback" not in output


def test_float16_without_zero_is_refused(tmp_path):
    (tmp_path / "fp16.json").write_text('{"fp16": {"enabled": true}, "zero_optimization": {"stage": 0}}')
    sizes = {"global_batch_size": 8, "micro_batches": 1, "world_size": 1, "max_grad_norm": 1.0}
    with pytest.raises(UserError, match="without ZeRO, DeepSpeed divides gradients by a loss scale"):
        resolve_deepspeed_config(str(tmp_path / "fp16.json"), **sizes)


def test_a_loss_that_is_not_finite_is_no_matter_of_the_loss_scale():
    assert describe(True, ["a"], 1024.0) == "the loss is not finite for a"
