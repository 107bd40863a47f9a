"""Training through the real launchers, with two ranks, on CPU."""

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from launchers import (
    BIN,
    TINY_MODEL_ARGS,
    free_port,
    launch,
    losses,
    settings,
    start,
    start_command,
    steps,
    train_in_turn,
    wait_for_ranks,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_view import damaged_pictures, make_view

from shards.storage import LocalStorage
from shards.view import open_view
from xmodal.labels import CLASSES
from xmodal.students import StudentConfig, create_student
from xmodal.training.checkpoint import committed_steps
from xmodal.training.costs import forward_flops
from xmodal.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def alone(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank under plain `python` that accumulates two micro-batches."""
    output = tmp_path_factory.mktemp("alone")
    done = launch(
        "python",
        settings(
            small_view, output, "--micro_batch_size=8", "--deepspeed=configs/deepspeed/zero0.json", "--peak_tflops=0.5"
        ),
    )
    assert done.returncode == 0, done.stdout
    assert "  mfu " in done.stdout
    return output


STAGES = ("0", "1", "2", "3", "3_offload")
"""Of ZeRO. 3 comes after the others: it changes torch itself, for the whole process."""


def of_stage(view: Path, output: Path, stage: str, *more: str) -> list[str]:
    return settings(view, output, f"--deepspeed=configs/deepspeed/zero{stage}.json", *more)


@pytest.fixture(scope="module")
def by_two_ranks(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of two ranks lie, each in a folder by its ZeRO stage."""
    folder = tmp_path_factory.mktemp("two-ranks")
    train_in_turn(2, [of_stage(small_view, folder / stage, stage) for stage in STAGES], folder)
    return folder


def assert_same_run(output: Path, alone: Path) -> None:
    # The same samples, so the losses differ by no more than bf16 arithmetic in another order: 3 digits.
    assert losses(output) == pytest.approx(losses(alone), rel=3e-3)
    assert len(losses(output)) == 158 // 16
    one, two = (
        timm.create_model(f"local-dir:{folder}/student", pretrained=True).state_dict() for folder in (alone, output)
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=3e-3, rtol=0.05)
        # What is exported are the full weights, not those that the forward pass rounds to bf16.
        assert two[name].numel() < 100 or not torch.equal(two[name], two[name].bfloat16().float())


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_what_one_learns(alone, by_two_ranks, stage):
    assert_same_run(by_two_ranks / stage, alone)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_two_ranks_of_a_launcher_learn_what_one_learns(alone, small_view, tmp_path, launcher):
    done = launch(launcher, of_stage(small_view, tmp_path, "2"))
    assert done.returncode == 0, done.stdout
    assert_same_run(tmp_path, alone)


def test_two_launchers_without_ssh_learn_what_one_process_learns(alone, small_view, tmp_path):
    (tmp_path / "hosts").write_text("one slots=1\nother slots=1\n")  # names that lead nowhere
    port = str(free_port())
    nodes = [
        start_command([
            *(str(BIN / "deepspeed"), "--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--node_rank", str(node)),
            *("--master_addr", "127.0.0.1", "--master_port", port, "launch/train.py"),
            *settings(small_view, tmp_path / "run"),
        ])
        for node in range(2)
    ]  # fmt: skip
    codes, outputs = wait_for_ranks(nodes)
    assert codes == [0, 0], outputs
    assert "of 16 on 2 ranks" in outputs[0]
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=3e-3)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_a_compiled_student_learns_what_it_learns_as_it_is_and_keeps_the_names_of_its_weights(
    alone, small_view, tmp_path
):
    # Resumed without: neither the checkpoint nor the student knows of it.
    arguments = of_stage(small_view, tmp_path / "run", "2")
    train_in_turn(1, [[*arguments, "--compile=true", "--max_steps=5"], arguments], tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=3e-3)
    here, there = (load_file(output / "student" / "model.safetensors") for output in (tmp_path / "run", alone))
    assert here.keys() == there.keys()


@pytest.fixture(scope="module")
def after_one_step(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of one step lie, each in a folder by its ZeRO stage."""
    folder = tmp_path_factory.mktemp("one-step")
    more = ("--max_steps=1", "--optimizer.lr=1e-2", "--optimizer.warmup_share=0", "--optimizer.weight_decay=0")
    train_in_turn(1, [of_stage(small_view, folder / stage, stage, *more) for stage in STAGES], folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_has_taken_no_step_before_the_first(after_one_step, stage):
    torch.manual_seed(0)
    before = create_student(_tiny_student())
    after = timm.create_model(f"local-dir:{after_one_step / stage}/student", pretrained=True).state_dict()
    moved = torch.cat([(after[name] - weight).abs().flatten() for name, weight in before.state_dict().items()])
    # Adam's first step is the learning rate along each weight's gradient, whatever its size; a step counted
    # before it would make this one 0.74 of that.
    assert moved.median().item() == pytest.approx(1e-2, rel=0.02)


def test_a_step_line_says_everything(alone):
    flops = forward_flops(create_student(_tiny_student()), 32)
    for line in steps(alone):
        # Of the peak that `alone` was told. No CPU's is known.
        assert line["mfu"] == pytest.approx(line["images_per_second"] * 3 * flops / 0.5e12)
        assert line["grad_norm"] is None or line["grad_norm"] > 0
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert line["memory_gib"] > 0
    validation = [line for line in read_metrics(alone) if line["kind"] == "validation"]
    assert len(validation) == 1
    assert validation[0]["kl"] > 0
    recalls = [f"recall_{name}" for name in CLASSES]
    assert validation[0]["recall_macro"] == pytest.approx(sum(validation[0][name] for name in recalls) / 3)
    events = EventAccumulator(str(alone / "tensorboard"))
    events.Reload()
    for name in ("teacher_agreement", "recall_macro", *recalls):
        assert [event.value for event in events.Scalars(f"validation/{name}")] == pytest.approx([validation[0][name]])
    assert [event.value for event in events.Scalars("step/mfu")] == pytest.approx([one["mfu"] for one in steps(alone)])


def test_the_student_learns(small_view, tmp_path):
    done = launch(
        "python",
        settings(small_view, tmp_path, "--epochs=6", "--optimizer.lr=3e-3", "--augment.min_crop_area=1"),
    )
    assert done.returncode == 0, done.stdout
    validation = [line for line in read_metrics(tmp_path) if line["kind"] == "validation"]
    assert validation[-1]["teacher_agreement"] > 0.9
    assert validation[-1]["kl"] < validation[0]["kl"] / 2


def test_a_student_is_not_selected_by_pictures_that_cannot_be_decoded(tmp_path):
    view = make_view(tmp_path, num_samples=40)
    with damaged_pictures(view, open_view(str(view)).split("val").rows.to_pylist()):
        done = launch("python", settings(view, tmp_path / "run", "--select=kl"))
    assert done.returncode == 2, done.stdout
    assert committed_steps(tmp_path / "run" / "checkpoints") == ["step-00000002"]
    assert "no picture of its val split, to select the best by, can be decoded" in done.stdout
    assert "Traceback" not in done.stdout


def test_another_learning_rate_is_refused_on_resume(alone, small_view):
    done = launch("python", settings(small_view, alone, "--micro_batch_size=8", "--optimizer.lr=0.5"))
    assert done.returncode == 2
    assert "optimizer.lr: this run was begun with 0.001, not 0.5" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_run_is_resumed_with_other_settings_that_do_not_shape_the_student(small_view, tmp_path):
    output = tmp_path / "run"
    others = (
        "--micro_batch_size=8", "--stream.num_workers=1", "--stream.max_damaged_share=0.5",
        "--student.gradient_checkpointing=true",
    )  # fmt: skip
    (said,) = train_in_turn(
        1,
        [
            settings(small_view, output, "--epochs=2", "--max_steps=9"),
            settings(f"{small_view}/", output, "--epochs=2", *others),
        ],
        tmp_path,
    )
    assert "resuming at step 9 of 18" in said
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 19))
    assert [event.step for event in events.Scalars("validation/loss")] == [9, 18]


def test_a_run_that_is_beyond_max_steps_is_not_passed_off_as_one_of_so_many(alone, small_view):
    zero = "--deepspeed=configs/deepspeed/zero0.json"
    done = launch("python", settings(small_view, alone, "--micro_batch_size=8", "--max_steps=5", zero))
    assert done.returncode == 2
    assert "at step 9 already, beyond the 5 of max_steps" in done.stdout


def test_a_run_that_died_before_its_first_checkpoint_binds_the_next_one_to_nothing(small_view, tmp_path):
    run = settings(small_view, tmp_path / "run", "--max_steps=1", "--checkpoint_every_epochs=0")
    train_in_turn(1, [run, [*run, "--optimizer.lr=0.01"]], tmp_path)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_what_one_rank_says_is_not_buried_by_the_others(tmp_path, launcher):
    view = make_view(tmp_path, num_samples=180)
    victim = LocalStorage(tmp_path / "dataset").names(".tar")[5]
    (tmp_path / "dataset" / victim).unlink()
    done = launch(launcher, settings(view, tmp_path / "run"))
    assert done.returncode != 0
    assert f"{victim}: this shard of the view is not there" in done.stdout
    assert "gloo/transport" not in done.stdout
    assert "xmodal/training/train.py" not in done.stdout


def test_a_run_whose_reading_process_is_killed_ends_and_says_so_in_two_lines(small_view, tmp_path):
    process = start("python", settings(small_view, tmp_path, "--epochs=500", "--stream.num_workers=1"))
    try:
        deadline = time.monotonic() + 120
        while len(steps(tmp_path)) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        reading = [child for child in psutil.Process(process.pid).children() if "launch/train.py" in child.cmdline()]
        reading[0].kill()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 2, output
    assert "a reading process has ended: " in output
    assert "lower stream.num_workers" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--output=/dev/null",), "/dev/null: cannot be a folder"),
        (("--deepspeed={tmp}/both.json",), "both.json: DeepSpeed refuses it"),
        (("--deepspeed={tmp}/unknown.json",), "unknown.json: DeepSpeed refuses it"),
    ],
    ids=["output", "both", "unknown"],
)
def test_what_cannot_be_done_is_told_in_two_lines(small_view, tmp_path, more, complaint):
    both = {"fp16": {"enabled": True}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    (tmp_path / "both.json").write_text(json.dumps(both))
    (tmp_path / "unknown.json").write_text('{"zero_optimization": {"stage": 1, "no_such_key": 1}}')
    done = launch("python", settings(small_view, tmp_path / "run", *(one.format(tmp=tmp_path) for one in more)))
    assert done.returncode == 2, done.stdout
    assert complaint in done.stdout
    assert "Traceback" not in done.stdout


def _tiny_student() -> StudentConfig:
    return StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS)


WITH_BUFFERS = {
    "resnet10t": "{}",  # has running statistics in its state dict
    "swin_tiny_patch4_window7_224": '{"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1]}',
}
"""Models, and their arguments."""


def test_models_with_buffers_train_and_export(small_view, tmp_path):
    few = ("--max_steps=2", "--checkpoint_every_epochs=0")
    runs = [
        settings(small_view, tmp_path / name, f"--student.model={name}", f"--student.model_args={arguments}", *few)
        for name, arguments in WITH_BUFFERS.items()
    ]
    train_in_turn(1, runs, tmp_path)
    for name in WITH_BUFFERS:
        assert timm.create_model(f"local-dir:{tmp_path / name}/student", pretrained=True).num_classes == 3
