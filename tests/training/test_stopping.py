"""Runs that are asked to stop, killed, stalled or fed nonsense: what they leave, and that they go on as if unbroken."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from launchers import ROOT, launch, losses, settings, start, start_ranks, steps, wait_for_ranks, wait_for_step
from safetensors import safe_open
from safetensors.torch import load_file
from training_view import make_view

from xmodal.training.agreement import differing
from xmodal.training.checkpoint import committed_steps
from xmodal.training.nonfinite import SkippedSteps, describe, suspects

LENGTH = 80
"""Steps of the runs that are broken off somewhere before."""
HOST = socket.gethostname()
MORE = (
    "--epochs=60", "--deepspeed=configs/deepspeed/zero2.json", "--frozen_epochs=4", "--optimizer.kind=radam",
    "--optimizer.ema_decay=0.9",
)  # fmt: skip


def weights(output: Path) -> bytes:
    return (output / "student" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks to the end."""
    output = tmp_path_factory.mktemp("unbroken")
    codes, outputs = wait_for_ranks(start_ranks([settings(small_view, output, *MORE, f"--max_steps={LENGTH}")] * 2))
    assert codes == [0, 0], outputs
    return output


def test_sigterm_to_one_rank_stops_all_with_a_checkpoint_and_they_go_on_exactly(small_view, tmp_path, unbroken):
    arguments = settings(small_view, tmp_path, *MORE, "--stream.num_workers=1")
    ranks = start_ranks([arguments] * 2)
    wait_for_step(tmp_path, 4, ranks)
    # As a cluster does, to its reading process too.
    for process in [*psutil.Process(ranks[1].pid).children(recursive=True), ranks[1]]:
        process.send_signal(signal.SIGTERM)
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [75, 75], outputs
    (newest,) = committed_steps(tmp_path / "checkpoints")[-1:]
    assert f"stopped at step {int(newest[5:])} of 540, as asked" in outputs[0]
    assert not (tmp_path / "student").exists()
    codes, outputs = wait_for_ranks(start_ranks([[*arguments, f"--max_steps={LENGTH}"]] * 2))
    assert codes == [0, 0], outputs
    assert f"resuming at step {int(newest[5:])} of {LENGTH}" in outputs[0]
    assert losses(tmp_path) == losses(unbroken)
    assert weights(tmp_path) == weights(unbroken)


def test_a_stop_file_stops_a_run_under_the_deepspeed_launcher_and_is_taken_away(small_view, tmp_path):
    process = start("deepspeed", settings(small_view, tmp_path, *MORE, f"--stop_file={tmp_path / 'enough'}"))
    wait_for_step(tmp_path, 2, [process])
    (tmp_path / "enough").touch()
    (code,), outputs = wait_for_ranks([process])
    assert code == 75, outputs
    assert not (tmp_path / "enough").exists()
    assert committed_steps(tmp_path / "checkpoints")


def test_checkpoints_come_every_so_many_steps_and_the_newest_the_best_and_the_first_of_every_stretch_stay(
    small_view, tmp_path
):
    more = ("--epochs=3", "--checkpoint_every_steps=4", "--keep_every_steps=12", "--keep_checkpoints=1")
    done = launch("python", settings(small_view, tmp_path, *more))
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "checkpoints"
    # Made at 4, 8, 9 (an epoch's end), 12, 16, 18, 20, 24, 27; it learns, so the newest is the best.
    assert committed_steps(folder) == ["step-00000012", "step-00000024", "step-00000027"]
    assert (folder / "latest").read_text() == (folder / "best").read_text() == "step-00000027"


def loadable(folder: Path) -> None:
    """Every committed checkpoint holds all of the student."""
    names = None
    for name in committed_steps(folder):
        held = set()
        for path in (folder / name).glob("rank-*.safetensors"):
            held |= load_file(path).keys()
        assert len(held) == 128
        assert names in (None, held)
        names = held


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_unbroken(small_view, tmp_path, unbroken, num_kills):
    generator = random.Random(num_kills)
    arguments = settings(small_view, tmp_path, *MORE, f"--max_steps={LENGTH}", "--checkpoint_every_steps=2")
    done = 0
    for _ in range(num_kills):
        ranks = start_ranks([arguments] * 2)
        # Most of a step is saving here, so most kills fall into it.
        wait_for_step(tmp_path, done + generator.randrange(1, max(2, LENGTH // num_kills)), ranks)
        time.sleep(generator.random() * 0.1)
        generator.choice(ranks).kill()
        wait_for_ranks(ranks)
        loadable(tmp_path / "checkpoints")
        done = max((int(name[5:]) for name in committed_steps(tmp_path / "checkpoints")), default=0)
    codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [0, 0], outputs
    assert losses(tmp_path) == losses(unbroken)
    assert weights(tmp_path) == weights(unbroken)


def test_from_four_ranks_to_two_to_one_and_from_zero_3_to_1_to_0_it_is_the_same_run(small_view, tmp_path):
    one, chain = tmp_path / "one", tmp_path / "chain"
    # In the first 9 steps, the backbone is frozen.
    recipe = ("--epochs=2", "--frozen_epochs=1", "--optimizer.ema_decay=0.5")
    zero = "--deepspeed=configs/deepspeed/zero0.json"
    assert launch("python", settings(small_view, one, *recipe, zero, "--max_steps=15")).returncode == 0
    for num_ranks, stage, max_steps in ((4, 3, 5), (2, 1, 10), (1, 0, 15)):
        more = (f"--deepspeed=configs/deepspeed/zero{stage}.json", f"--max_steps={max_steps}")
        codes, outputs = wait_for_ranks(start_ranks([settings(small_view, chain, *recipe, *more)] * num_ranks))
        assert codes == [0] * num_ranks, outputs
        assert max_steps == 5 or f"resuming at step {max_steps - 5} of {max_steps}" in outputs[0]
    assert [line["samples"] for line in steps(chain)] == [line["samples"] for line in steps(one)]
    assert len({line["samples"] for line in steps(one)}) == 15
    # bf16 arithmetic in another order: 3 digits.
    assert losses(chain) == pytest.approx(losses(one), rel=3e-3)
    averages = [load_file(run / "student" / "model.safetensors") for run in (chain, one)]
    for name in averages[1]:
        torch.testing.assert_close(averages[0][name], averages[1][name], atol=3e-3, rtol=0.05, msg=name)


def test_ranks_that_were_given_different_settings_say_which(small_view, tmp_path):
    arguments = settings(small_view, tmp_path)
    codes, outputs = wait_for_ranks(start_ranks([arguments, [*arguments, "--optimizer.lr=0.1"]]))
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "the ranks do not agree: config.optimizer.lr is 0.001 on rank 0 and 0.1 on rank 1" in output
        assert "Traceback" not in output


def test_what_differs_is_named_once_with_the_first_rank_that_differs():
    facts = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 0, "b": 4, "c": 5}]
    assert differing(facts) == [
        "a is 1 on rank 0 and 0 on rank 2", "b is 2 on rank 0 and 3 on rank 1", "c is None on rank 0 and 5 on rank 2",
    ]  # fmt: skip


def test_a_rank_that_does_not_answer_is_named_after_the_set_time(small_view, tmp_path):
    # Not below what the ranks of a busy machine need to find each other.
    ranks = start_ranks([settings(small_view, tmp_path, *MORE, "--peer_timeout=15")] * 2)
    wait_for_step(tmp_path, 3, ranks)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    try:
        output, _ = ranks[0].communicate(timeout=200)
    finally:
        os.kill(ranks[1].pid, signal.SIGKILL)
        wait_for_ranks(ranks)
    assert ranks[0].returncode == 2, output
    assert f"rank 0: another rank has ended or does not answer, so this one cannot go on: rank 1 on {HOST}" in output
    assert "Traceback" not in output


def test_a_stalled_rank_says_where_it_stands_and_ends():
    program = """
import time
from xmodal.training.watchdog import Watchdog
def waits_for_ever():
    time.sleep(1000)
with Watchdog(0.5, rank=3) as watchdog:
    for step in range(10):
        watchdog.progress(f"step {step}")
        time.sleep(0.1)
    waits_for_ever()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 70
    assert "waits_for_ever" in done.stderr
    assert "xmodal: rank 3: step 9 has taken more than 0.5 s" in done.stderr


def test_steps_of_spoilt_samples_are_skipped_counted_and_named(tmp_path):
    view = make_view(tmp_path, num_samples=180, spoilt={0})
    done = launch("python", settings(view, tmp_path / "run", "--epochs=2"))
    assert done.returncode == 0, done.stdout
    lines = steps(tmp_path / "run")
    skipped = [line["step"] for line in lines if line["loss"] is None]
    assert 1 <= len(skipped) <= 2
    assert lines[-1]["skipped"] == len(skipped)
    for step in skipped:
        assert f"step {step} was skipped: the loss is not finite for 0-0\n" in done.stdout
    with safe_open(tmp_path / "run" / "student" / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_too_many_skipped_steps_in_a_row_end_the_run_and_name_the_samples(tmp_path):
    view = make_view(tmp_path, num_samples=180, spoilt=range(180))
    done = launch("python", settings(view, tmp_path / "run", "--max_skipped_steps=2"))
    assert done.returncode == 2, done.stdout
    assert "step 3: 3 steps in a row were skipped: the loss is not finite for " in done.stdout
    assert "Traceback" not in done.stdout


def test_skipped_steps_in_a_row_are_counted_anew_after_one_that_was_not():
    skipped = SkippedSteps(1)
    for was_applied in (False, True, False):
        skipped.add(was_applied=was_applied)
        assert not skipped.are_too_many()
    skipped.add(was_applied=False)
    assert skipped.are_too_many()
    assert skipped.state_dict() == {"total": 3, "in_a_row": 2}


def test_suspects_are_those_without_a_finite_loss_or_all():
    assert suspects(torch.tensor([1.0, float("nan"), float("inf")]), ["a", "b", "c"]) == ["b", "c"]
    assert suspects(torch.tensor([1.0, 2.0]), ["a", "b"]) == ["a", "b"]
    assert describe(False, [str(i) for i in range(25)]).endswith("18, 19 and 5 more")
