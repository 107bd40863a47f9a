"""Checkpoints: which stay, and that any number of ranks at any ZeRO stage goes on from them."""

import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launchers import (
    ROOT,
    command,
    environment,
    free_port,
    launch,
    settings,
    start_program,
    start_ranks,
    wait_for_ranks,
    wait_for_step,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shards.errors import UserError
from xmodal.training.checkpoint import Keep, best_step, committed_steps, kept_steps, read_commit
from xmodal.training.metrics_file import append_metrics

STEPS = st.lists(st.integers(1, 10_000), unique=True, min_size=1).map(sorted)


@given(steps=STEPS, last=st.integers(1, 5), every_steps=st.integers(0, 3000))
def test_the_newest_stay_and_the_first_of_every_stretch(steps, last, every_steps):
    kept = kept_steps(steps, Keep(last=last, every_steps=every_steps), None)
    assert set(steps[-last:]) <= kept <= set(steps)
    for step in set(steps) - kept:
        assert not every_steps or step < every_steps or step // every_steps in {one // every_steps for one in kept}
    # Asked again when more has come, it still keeps what was to stay for good.
    if every_steps:
        newer = [*sorted(kept), *range(20_000, 20_000 + last)]
        assert kept - set(steps[-last:]) <= kept_steps(newer, Keep(last=last, every_steps=every_steps), None)


def test_the_best_stays_however_old():
    assert kept_steps([1, 2, 3, 4], Keep(last=2), 1) == {1, 3, 4}


def test_the_best_diverges_least_and_of_equals_is_the_newer():
    assert best_step({9: 0.5, 18: 0.2, 27: 0.2, 36: 0.3}) == 27
    assert best_step({}) is None


Differences = dict[tuple[str, str], tuple[float, float]]
"""(ZeRO stage saved at, loaded at) → the largest of any weight, at once and two steps on."""


@pytest.fixture(scope="module")
def by_two_ranks(tmp_path_factory) -> tuple[Path, Differences]:
    """The folder of a checkpoint of each ZeRO stage, and how it goes on at the same one and another."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_ranks(2, "save", str(folder))


def run_ranks(num_ranks: int, *arguments: str) -> Differences:
    """Run the program on so many ranks."""
    job = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        start_program("tests/checkpoint_program.py", arguments, RANK=str(rank), LOCAL_RANK=str(rank), **job)
        for rank in range(num_ranks)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * num_ranks, "\n".join(outputs)
    lines = [line.split()[1:] for line in outputs[0].splitlines() if line.startswith("difference ")]
    return {(saved, loaded): (float(now), float(later)) for saved, loaded, now, later in lines}


def test_the_same_ranks_go_on_exactly_and_at_another_stage_from_the_same_state(by_two_ranks):
    _, differences = by_two_ranks
    stages = ("0", "1", "2", "2_offload", "3", "3_offload")
    assert differences.keys() == {*zip(stages, stages, strict=True), *itertools.pairwise(stages)}
    for (saved_at, loaded_at), (now, later) in differences.items():
        assert now == 0
        # Another stage adds gradients up in another order; Adam makes up to 2 rates of it where they are all but 0.
        assert later <= (0 if loaded_at == saved_at else 0.01)


def test_another_number_of_ranks_goes_on_from_the_same_state_at_every_stage(by_two_ranks):
    folder, _ = by_two_ranks
    differences = run_ranks(1, "load", str(folder))
    assert differences.keys() == {("3", "0"), ("2", "1"), ("0", "2"), ("3_offload", "2_offload"), ("1", "3")}
    assert all(now == 0 and later <= 0.01 for now, later in differences.values())


def test_a_checkpoint_says_what_it_is_of_and_names_whole_parameters(by_two_ranks):
    folder, _ = by_two_ranks
    checkpoint = folder / "zero3" / "step-00000003"
    commit = json.loads((checkpoint / "commit.json").read_text())
    assert (commit["world_size"], commit["zero_stage"], commit["optimizer"]) == (2, 3, {"step": 3})
    assert (folder / "zero3" / "latest").read_text() == "step-00000003"
    shapes = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    for kind in ("weight", "exp_avg", "exp_avg_sq", "ema"):
        assert shapes[f"{kind}:head.weight"] == [3, 32]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ('{"step": 9, "world_', "not JSON"),
        ("[9]", "holds no JSON object"),
        ('{"step": "9", "world_size": 1}', "step: missing, or no int"),
        ('{"step": 9, "world_size": 1}', "stream: missing, or no dict"),
    ],
)
def test_a_damaged_commit_file_is_told_with_its_folder(tmp_path, content, said):
    (tmp_path / "commit.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_commit(tmp_path, {"stream": dict})
    assert caught.value.what.startswith(f"{tmp_path / 'commit.json'}: {said}")
    assert f"remove {tmp_path}" in caught.value.remedy


@pytest.fixture(scope="module")
def run(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a batch norm, so that its student has buffers, after one step."""
    output = tmp_path_factory.mktemp("run")
    done = launch("python", of_run(small_view, output))
    assert done.returncode == 0, done.stdout
    return output


def of_run(view: Path, output: Path) -> list[str]:
    student = ("--student.model=resnet10t", "--student.model_args={}", "--max_steps=1")
    return settings(view, output, *student)


def cut_commit(checkpoint: Path) -> None:
    path = checkpoint / "commit.json"
    path.write_text(path.read_text()[:-20])


def cut_share(checkpoint: Path) -> None:
    path = checkpoint / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def change_share(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = checkpoint / "rank-00000.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


DAMAGES = {
    "cut-commit": (cut_commit, "commit.json: not JSON"),
    "cut-share": (cut_share, "cannot be loaded"),
    "renamed": (
        lambda folder: change_share(folder, lambda held: held.update({"weight:fc.gain": held.pop("weight:fc.bias")})),
        "is of another student: weight:fc.bias is missing there and (3,) here",
    ),
    "further": (
        lambda folder: change_share(folder, lambda held: held.update({"weight:fc.gain": torch.zeros(3)})),
        "is of another student: weight:fc.gain is (3,) there and missing here",
    ),
    "broadcast": (
        lambda folder: change_share(folder, lambda held: held.update({"weight:fc.bias": torch.zeros(1)})),
        "is of another student: weight:fc.bias is (1,) there and (3,) here",
    ),
    "moment": (
        lambda folder: change_share(folder, lambda held: held.update({"exp_avg:fc.bias": torch.zeros(1)})),
        "is of another student: exp_avg:fc.bias is (1,) there and (3,) here",
    ),
    "no-buffer": (
        lambda folder: change_share(folder, lambda held: held.pop("buffer:bn1.running_mean")),
        "is of another student: buffer:bn1.running_mean is missing there",
    ),
}


LOAD_ALL = """
import json, sys
from shards.errors import UserError
from xmodal.cli.arguments import read_config
from xmodal.cli.training import train
from xmodal.training.config import TrainConfig
from xmodal.training.job import joined_ranks
from xmodal.training.train import train_within
with joined_ranks(600) as ranks:
    for arguments in json.loads(sys.argv[1]):
        try:
            train_within(read_config(TrainConfig, arguments, train), ranks)
        except UserError as error:
            print(json.dumps([error.what, error.remedy]))
"""


def test_a_checkpoint_that_is_damaged_or_of_another_student_is_a_users_mistake(run, small_view, tmp_path):
    for name, (damage, _) in DAMAGES.items():
        damage(shutil.copytree(run, tmp_path / name) / "checkpoints" / "step-00000001")
    runs = json.dumps([of_run(small_view, tmp_path / name) for name in DAMAGES])
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, runs], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for line, (name, (_, said)) in zip(done.stdout.splitlines(), DAMAGES.items(), strict=True):
        what, remedy = json.loads(line)
        assert what.startswith(f"{tmp_path / name}/checkpoints/step-00000001")
        assert said in what
        assert "remove" in remedy or "give a new `output` folder" in remedy


@pytest.mark.parametrize("damaged", [0, 1])
def test_what_one_of_two_ranks_cannot_load_ends_both_and_the_first_tells_it(run, small_view, tmp_path, damaged):
    # As if each had a disk of its own: the first one reads the weights for both, and each its buffers.
    outputs = [shutil.copytree(run, tmp_path / str(rank)) for rank in range(2)]
    cut_share(outputs[damaged] / "checkpoints" / "step-00000001")
    codes, said = wait_for_ranks(start_ranks([of_run(small_view, output) for output in outputs]))
    assert codes == [2, 2], said
    told = f"{outputs[damaged]}/checkpoints/step-00000001: cannot be loaded: "
    assert f"xmodal: {'rank 1: ' if damaged else ''}{told}" in said[0]
    assert "Traceback" not in said[0]
    assert "xmodal: " not in said[1]


def in_small_disk(folder: Path, kib: int, arguments: Sequence[str]) -> list[str]:
    """A command with a disk of so many KiB at `folder`, which it alone sees; it lists at the end what it has left."""
    script = f"""
        mount -t tmpfs -o size={kib}k tmpfs '{folder}' || exit 99
        "$@"
        code=$?
        cd '{folder}' && find checkpoints | sort
        exit $code
    """
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *arguments]


def test_where_the_disk_is_full_nothing_is_left_of_the_checkpoint_and_it_is_told(small_view, tmp_path):
    tried = subprocess.run(in_small_disk(tmp_path, 100, ["true"]), capture_output=True, check=False)
    if tried.returncode == 99 or b"unshare" in tried.stderr:
        pytest.skip("may not mount a disk of its own")
    more = ("--epochs=9", "--checkpoint_every_steps=1", "--checkpoint_every_epochs=0", "--keep_checkpoints=9")
    program = command("python", settings(small_view, tmp_path, *more))
    # A checkpoint takes 400 KiB.
    done = subprocess.run(
        in_small_disk(tmp_path, 1000, program),
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    told = done.stdout.splitlines()
    [place] = [place for place, line in enumerate(told) if "No space left on device" in line]
    assert told[place].startswith(f"xmodal: {tmp_path}/checkpoints/step-00000003: cannot be written to: ")
    assert "goes on from the checkpoint before" in told[place + 1]
    whole = [
        f"checkpoints/step-0000000{step}{file}"
        for step in (1, 2)
        for file in ("", "/commit.json", "/rank-00000.safetensors")
    ]
    assert told[place + 2 :] == ["checkpoints", "checkpoints/latest", *whole]


def test_where_one_rank_cannot_write_all_end_and_the_first_says_so(small_view, tmp_path):
    more = ("--epochs=60", "--checkpoint_every_steps=4", "--checkpoint_every_epochs=0")
    ranks = start_ranks([settings(small_view, tmp_path, *more)] * 2)
    wait_for_step(tmp_path, 6, ranks)
    # Longer files are refused to it from now on.
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [2, 2], outputs
    assert re.search(r"xmodal: rank 1: .*: cannot be written to: .*File too large", outputs[0])
    assert "Traceback" not in "".join(outputs)
    assert "xmodal: " not in outputs[1]
    checkpoints = tmp_path / "checkpoints"
    assert [path.name for path in sorted(checkpoints.glob("*-*"))] == committed_steps(checkpoints)
    assert committed_steps(checkpoints)


def test_a_line_of_metrics_that_cannot_be_written_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError) as caught:
        append_metrics(tmp_path / "gone", "step", 1, {"loss": 1.0})
    assert caught.value.what == f"{tmp_path / 'gone'}: cannot be written to: No such file or directory"
