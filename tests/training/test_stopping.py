"""Runs that are stopped, killed, stalled, or cannot read on: what they leave, and that they go on as if unbroken."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from launchers import (
    ROOT,
    launch,
    losses,
    settings,
    start,
    start_ranks,
    steps,
    wait_for_ranks,
    wait_for_step,
)
from safetensors.torch import load_file
from training_view import damaged_pictures, make_view, samples_of_step

from xmodal.training.agreement import differing
from xmodal.training.checkpoint import COMMIT_FILE, committed_steps

LENGTH = 27
"""Steps of the runs that are broken off somewhere before; in the first 9, the backbone is frozen."""
HOST = socket.gethostname()
ZERO2 = "--deepspeed=configs/deepspeed/zero2.json"
# All that a run must go on with: the average of the weights, the steps of an optimizer that begins anew, what is drawn.
RECIPE = (
    "--epochs=60", "--frozen_epochs=1", "--optimizer.kind=radam", "--optimizer.ema_decay=0.9",
    "--augment.rand_augment=0.5", "--loss.kind=mixed", "--loss.hard_share=0.3", "--loss.confidence_power=1",
)  # fmt: skip


def weights(output: Path) -> bytes:
    return (output / "student" / "model.safetensors").read_bytes()


def run_unbroken(view: Path, output: Path, length: int) -> Path:
    """Two ranks to the end."""
    codes, outputs = wait_for_ranks(start_ranks([settings(view, output, *RECIPE, ZERO2, f"--max_steps={length}")] * 2))
    assert codes == [0, 0], outputs
    return output


@pytest.fixture(scope="module")
def unbroken(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_unbroken(small_view, tmp_path_factory.mktemp("unbroken"), LENGTH)


def test_sigterm_to_one_rank_stops_all_with_a_checkpoint_and_they_go_on_exactly(small_view, tmp_path, unbroken):
    arguments = settings(small_view, tmp_path, *RECIPE, ZERO2, "--stream.num_workers=1")
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
    process = start("deepspeed", settings(small_view, tmp_path, *RECIPE, ZERO2, f"--stop_file={tmp_path / 'enough'}"))
    wait_for_step(tmp_path, 2, [process])
    (tmp_path / "enough").touch()
    (code,), outputs = wait_for_ranks([process])
    assert code == 75, outputs
    assert not (tmp_path / "enough").exists()
    assert committed_steps(tmp_path / "checkpoints")


def test_a_stop_file_that_comes_too_late_does_not_stop_whoever_goes_on_beyond_the_end(small_view, tmp_path):
    arguments = settings(small_view, tmp_path, "--checkpoint_every_steps=1")
    assert launch("python", [*arguments, "--max_steps=2"]).returncode == 0
    (tmp_path / "stop").touch()
    assert launch("python", [*arguments, "--max_steps=2"]).returncode == 0
    assert not (tmp_path / "stop").exists()


def num_unfinished(folder: Path) -> int:
    """How many checkpoints are not committed. Those that are must hold all of the student."""
    complete, held = committed_steps(folder), []
    for name in complete:
        held.append({key for path in (folder / name).glob("rank-*.safetensors") for key in load_file(path)})
    assert all(len(keys) == 128 and keys == held[0] for keys in held)
    return len([path for path in folder.glob("step-*") if path.name not in complete])


def wait_for_saving(output: Path, ranks: Sequence[subprocess.Popen[str]], since: float) -> None:
    """Wait until a checkpoint has begun, or is being dropped, of those that were touched `since` then."""
    deadline = time.monotonic() + 200
    while True:
        for path in (output / "checkpoints").glob("step-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > since and not (path / COMMIT_FILE).exists():
                    return
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in ranks)


@pytest.mark.parametrize(("num_kills", "length"), [(3, LENGTH), pytest.param(20, 120, marks=pytest.mark.slow)])
def test_killed_at_any_time_it_leaves_no_half_checkpoint_and_ends_as_if_unbroken(
    small_view, tmp_path, unbroken, num_kills, length
):
    if length != LENGTH:
        unbroken = run_unbroken(small_view, tmp_path / "unbroken", length)
    output = tmp_path / "killed"
    arguments = settings(small_view, output, *RECIPE, ZERO2, f"--max_steps={length}", "--checkpoint_every_steps=2")
    generator = random.Random(num_kills)
    done = unfinished = 0
    for kill in range(num_kills):
        since, ranks = time.time(), start_ranks([arguments] * 2)
        wait_for_step(output, done + generator.randrange(1, length // (num_kills + 1) - 2), ranks, since)
        victim = generator.randrange(2)
        if kill % 2 == 0:
            wait_for_saving(output, ranks, since)
        time.sleep(generator.random() * (0.02 if kill % 2 == 0 else 0.2))
        ranks[victim].kill()
        codes, outputs = wait_for_ranks(ranks)
        survivor = 1 - victim
        assert (codes[victim], codes[survivor]) == (-signal.SIGKILL, 2), outputs
        assert f"rank {survivor}: another rank has ended or does not answer" in outputs[survivor]
        assert f"so this one cannot go on: rank {victim} on {HOST}\n" in outputs[survivor]
        assert "Traceback" not in outputs[survivor]
        unfinished += num_unfinished(output / "checkpoints")
        assert not done or f"resuming at step {done} of {length}" in outputs[0]
        done = max((int(name[5:]) for name in committed_steps(output / "checkpoints")), default=0)
    assert unfinished
    codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [0, 0], outputs
    assert losses(output) == losses(unbroken)
    assert weights(output) == weights(unbroken)


def test_from_four_ranks_to_two_to_one_and_from_zero_3_to_1_to_0_it_is_the_same_run(small_view, tmp_path, unbroken):
    last = 0
    for num_ranks, stage, max_steps in ((4, 3, 5), (2, 1, 14), (1, 0, LENGTH)):
        more = (f"--deepspeed=configs/deepspeed/zero{stage}.json", f"--max_steps={max_steps}")
        codes, outputs = wait_for_ranks(start_ranks([settings(small_view, tmp_path, *RECIPE, *more)] * num_ranks))
        assert codes == [0] * num_ranks, outputs
        assert not last or f"resuming at step {last} of {max_steps}" in outputs[0]
        last = max_steps
    assert [line["samples"] for line in steps(tmp_path)] == [line["samples"] for line in steps(unbroken)]
    assert len({line["samples"] for line in steps(tmp_path)}) == LENGTH
    # bf16 arithmetic in another order: 3 digits.
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=3e-3)
    here, there = (load_file(output / "student" / "model.safetensors") for output in (tmp_path, unbroken))
    for name in there:
        torch.testing.assert_close(here[name], there[name], atol=3e-3, rtol=0.05, msg=name)


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
    # Not below what a rank of a busy machine may be behind another.
    ranks = start_ranks([settings(small_view, tmp_path, "--epochs=60", "--peer_timeout=15")] * 2)
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


def test_what_one_rank_cannot_read_ends_all_with_a_checkpoint_and_they_go_on_exactly(tmp_path, unbroken):
    view, output = make_view(tmp_path, num_samples=180), tmp_path / "run"
    arguments = settings(view, output, *RECIPE, ZERO2, f"--max_steps={LENGTH}", "--stream.max_damaged_share=0")
    with damaged_pictures(view, samples_of_step(view, 5, rank=1, world_size=2)[-1:]):
        codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [2, 2], outputs
    complaint = "1 of 49 pictures are damaged, more than stream.max_damaged_share = 0.0; the last: "
    assert f"xmodal: rank 1: {complaint}" in outputs[0]
    assert "xmodal: " not in outputs[1]
    assert committed_steps(output / "checkpoints") == ["step-00000005"]
    codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [0, 0], outputs
    assert f"resuming at step 5 of {LENGTH}" in outputs[0]
    assert losses(output) == losses(unbroken)
    assert weights(output) == weights(unbroken)


def test_a_run_that_cannot_read_its_first_batch_leaves_no_checkpoint(tmp_path):
    view = make_view(tmp_path, num_samples=180)
    with damaged_pictures(view, samples_of_step(view, 0, rank=0, world_size=1)[:1]):
        done = launch("python", settings(view, tmp_path / "run", "--stream.max_damaged_share=0"))
    assert done.returncode == 2, done.stdout
    assert "1 of 17 pictures are damaged" in done.stdout
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_whose_reading_process_stands_still_says_where_it_waits_and_ends(small_view, tmp_path):
    # Not below what a busy machine takes from the start to the first step.
    more = ("--epochs=900", "--stream.num_workers=1", "--step_timeout=20")
    process = start("python", settings(small_view, tmp_path, *more))
    try:
        wait_for_step(tmp_path, 3, [process])
        [reading] = [one for one in psutil.Process(process.pid).children() if "launch/train.py" in one.cmdline()]
        reading.suspend()
        process.wait(timeout=200)
        reading.kill()  # it holds the output, too
        output, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 70, output
    assert re.search(r"xmodal: rank 0: step \d+ has taken more than 20 s\n", output)
    assert " in _next_step\n" in output
    assert " in _try_get_data\n" in output


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
