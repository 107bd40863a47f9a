"""Steps whose loss or gradients are not finite are skipped, counted and named, at any ZeRO stage in any precision."""

from pathlib import Path

import pytest
import torch
from launchers import launch, settings, steps, train_in_turn
from safetensors.torch import load_file
from test_reference_run import float32_config
from training_view import make_view, samples_of_step

from xmodal.training.checkpoint import committed_steps
from xmodal.training.nonfinite import SkippedSteps, describe, suspects

STEP = 3
"""The one, from 1, that has the spoilt sample."""
RUNS = [(precision, stage) for stage in range(4) for precision in ("bf16", "float32")]


def weights(output: Path) -> dict[str, torch.Tensor]:
    found = load_file(output / "student" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in found.values())
    return found


@pytest.fixture(scope="module")
def by_two_ranks(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """The folder of the runs, each of them `PRECISION-STAGE`, the key of the spoilt sample, and what the ranks said.

    It is rank 1 that has the sample.
    """
    folder = tmp_path_factory.mktemp("nonfinite")
    key = samples_of_step(small_view, STEP - 1, rank=1, world_size=2)[0]["key"]
    view = make_view(folder, num_samples=180, spoilt={int(key.removesuffix("-0"))})
    arguments = []
    for precision, stage in RUNS:
        config = float32_config(folder, stage) if precision == "float32" else f"configs/deepspeed/zero{stage}.json"
        more = (f"--deepspeed={config}", "--optimizer.ema_decay=0.9")
        arguments.append(settings(view, folder / f"{precision}-{stage}", *more))
    without_limit = settings(view, folder / "without-limit", f"--deepspeed={float32_config(folder, 0)}")
    arguments.insert(0, [*without_limit, "--optimizer.max_grad_norm=0"])  # ZeRO 3 is last: it changes torch itself
    return folder, key, train_in_turn(2, arguments, folder)


@pytest.mark.parametrize("name", [*(f"{precision}-{stage}" for precision, stage in RUNS), "without-limit"])
def test_the_step_of_a_spoilt_sample_is_skipped_on_all_ranks_and_changes_nothing(by_two_ranks, name):
    folder, _, _ = by_two_ranks
    lines = steps(folder / name)
    assert [line["step"] for line in lines if line["loss"] is None] == [STEP]
    assert [line["skipped"] for line in lines] == [0] * (STEP - 1) + [1] * (len(lines) - STEP + 1)
    weights(folder / name)
    assert committed_steps(folder / name / "checkpoints") == [f"step-{len(lines):08d}"]


def test_the_first_rank_names_the_spoilt_sample_of_another(by_two_ranks):
    _, key, outputs = by_two_ranks
    assert outputs[0].count(f"step {STEP} was skipped: the loss is not finite for {key}\n") == len(RUNS) + 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_in_float32_a_skipped_step_is_the_same_without_zero_as_with_it(by_two_ranks, stage):
    folder, _, _ = by_two_ranks
    without, with_zero = weights(folder / "float32-0"), weights(folder / f"float32-{stage}")
    for name in without:
        # Of the keys' biases there is no gradient but rounding, which Adam makes steps of.
        torch.testing.assert_close(with_zero[name], without[name], rtol=1e-3, atol=1e-4, msg=name)


def test_too_many_skipped_steps_in_a_row_end_the_run_with_a_checkpoint_and_name_the_samples(tmp_path):
    view = make_view(tmp_path, num_samples=180, spoilt=range(180))
    arguments = settings(view, tmp_path / "run")
    done = launch("python", [*arguments, "--max_skipped_steps=2"])
    assert done.returncode == 2, done.stdout
    assert "step 3: 3 steps in a row were skipped: the loss is not finite for " in done.stdout
    assert "Traceback" not in done.stdout
    assert committed_steps(tmp_path / "run" / "checkpoints") == ["step-00000003"]
    done = launch("python", [*arguments, "--max_skipped_steps=9"])
    assert done.returncode == 0, done.stdout
    assert "resuming at step 3 of 9" in done.stdout
    assert [line["skipped"] for line in steps(tmp_path / "run")] == list(range(1, 10))
    weights(tmp_path / "run")


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
