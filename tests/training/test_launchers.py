"""Training through the real launchers, with two ranks, on CPU."""

import os
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from launchers import launch, losses, settings, start, steps

from xmodal.training.checkpoint import committed_steps
from xmodal.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def alone(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank under plain `python` that accumulates two micro-batches."""
    output = tmp_path_factory.mktemp("alone")
    done = launch(
        "python", settings(small_view, output, "--micro_batch_size=8", "--deepspeed=configs/deepspeed/zero0.json")
    )
    assert done.returncode == 0, done.stdout
    return output


@pytest.mark.parametrize(
    ("launcher", "stage"), [("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3), ("torchrun", 2)]
)
def test_two_ranks_learn_what_one_learns(alone, small_view, tmp_path, launcher, stage):
    done = launch(launcher, settings(small_view, tmp_path, f"--deepspeed=configs/deepspeed/zero{stage}.json"))
    assert done.returncode == 0, done.stdout
    # The same samples, so the losses differ by no more than bf16 arithmetic in another order: 3 digits.
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.02)
    assert len(losses(tmp_path)) == 158 // 16
    one, two = (
        timm.create_model(f"local-dir:{output}/student", pretrained=True).state_dict() for output in (alone, tmp_path)
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=0.01, rtol=0.05)


def test_a_step_line_says_everything(alone):
    for line in steps(alone):
        assert line["grad_norm"] is None or line["grad_norm"] > 0
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert line["memory_gib"] > 0
    validation = [line for line in read_metrics(alone) if line["kind"] == "validation"]
    assert len(validation) == 1
    assert validation[0]["kl"] > 0
    assert list((alone / "tensorboard").glob("events.*"))


def test_the_student_learns(small_view, tmp_path):
    done = launch(
        "python",
        settings(small_view, tmp_path, "--epochs=6", "--optimizer.lr=3e-3", "--augment.min_crop_area=1"),
    )
    assert done.returncode == 0, done.stdout
    validation = [line for line in read_metrics(tmp_path) if line["kind"] == "validation"]
    assert validation[-1]["teacher_agreement"] > 0.9
    assert validation[-1]["kl"] < validation[0]["kl"] / 2


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(small_view, tmp_path):
    more = ("--epochs=3", "--deepspeed=configs/deepspeed/zero2.json")
    unbroken = tmp_path / "unbroken"
    assert launch("python", settings(small_view, unbroken, *more)).returncode == 0
    broken = tmp_path / "broken"
    _kill_after_first_checkpoint("python", settings(small_view, broken, *more), broken)
    done = launch("python", settings(small_view, broken, *more))
    assert done.returncode == 0, done.stdout
    assert "resuming at step" in done.stdout
    assert losses(broken) == losses(unbroken)
    assert (broken / "student" / "model.safetensors").read_bytes() == (
        unbroken / "student" / "model.safetensors"
    ).read_bytes()


def test_an_unfinished_checkpoint_is_never_loaded(small_view, tmp_path):
    arguments = settings(small_view, tmp_path, "--epochs=2")
    assert launch("python", arguments).returncode == 0
    newest = committed_steps(tmp_path / "checkpoints")[-1]
    (tmp_path / "checkpoints" / newest / "commit.json").unlink()
    done = launch("python", arguments)
    assert done.returncode == 0
    assert "resuming at step 9 of 18" in done.stdout


def test_another_number_of_ranks_is_refused_in_two_lines(alone, small_view):
    done = launch(
        "deepspeed",
        settings(small_view, alone, "--micro_batch_size=8", "--deepspeed=configs/deepspeed/zero0.json"),
    )
    assert done.returncode != 0
    assert "saved with world_size 1, and this run has 2" in done.stdout
    assert "Traceback" not in done.stdout


def test_another_learning_rate_is_refused_on_resume(alone, small_view):
    done = launch(
        "python",
        settings(small_view, alone, "--micro_batch_size=8", "--optimizer.lr=0.5"),
    )
    assert done.returncode == 2
    assert "optimizer: this run was begun with" in done.stdout
    assert "Traceback" not in done.stdout


def _kill_after_first_checkpoint(launcher: str, arguments: list[str], output: Path) -> None:
    process = start(launcher, arguments)
    deadline = time.monotonic() + 120
    # A few steps into the second epoch, so that steps after the checkpoint are done twice.
    while len(steps(output)) < 12:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "student").exists()


@pytest.mark.parametrize(
    ("model", "model_args"),
    [
        ("resnet10t", "{}"),  # has running statistics in its state dict
        ("swin_tiny_patch4_window7_224", '{"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1]}'),
    ],
)
def test_models_with_buffers_train_and_export(small_view, tmp_path, model, model_args):
    done = launch(
        "python",
        settings(
            small_view,
            tmp_path,
            f"--student.model={model}",
            f"--student.model_args={model_args}",
            "--max_steps=2",
            "--checkpoint_every_epochs=0",
        ),
    )
    assert done.returncode == 0, done.stdout
    assert timm.create_model(f"local-dir:{tmp_path}/student", pretrained=True).num_classes == 3
