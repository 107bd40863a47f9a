"""Checkpoints: which stay, and that any number of ranks at any ZeRO stage goes on from them."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launchers import free_port, start_program
from safetensors import safe_open

from xmodal.training.checkpoint import Keep, best_step, kept_steps

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
