"""The lines of steps: what they sum up, over several steps and all ranks, and over the break of a run between two."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launchers import settings, start_ranks, steps, wait_for_ranks, wait_for_step
from training_view import damaged_pictures, make_view, samples_of_step, train_stream

from shards.batches import Batch, Damage
from xmodal.training.checkpoint import committed_steps
from xmodal.training.step_log import StepSums, checksum

RECIPE = (
    "--epochs=60", "--log_every_steps=4", "--keep_checkpoints=99", "--checkpoint_every_steps=5",
    "--deepspeed=configs/deepspeed/zero2.json", "--stream.max_damaged_share=0.5",
)  # fmt: skip
LENGTH = 54


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def made_step(number: int) -> tuple[list[Batch], list[torch.Tensor]]:
    """Two micro-batches with a damaged sample, and their losses."""
    generator = torch.Generator().manual_seed(number)
    batches, losses = [], []
    for half in range(2):
        rows = torch.arange(4) + 8 * number + 4 * half
        damaged = [Damage("0.tar", "a", "cut off")] if half else []
        batches.append(Batch(torch.empty(4, 0), torch.empty(4, 3), rows, torch.ones(4, dtype=torch.bool), damaged))
        losses.append(torch.rand(4, generator=generator))
    return batches, losses


@pytest.mark.parametrize("broken_off_after", range(1, 7))
def test_sums_that_a_checkpoint_held_are_those_of_an_unbroken_run_to_the_last_bit(one_rank, broken_off_after):
    unbroken, broken = StepSums(), StepSums()
    for number in range(6):
        for sums in (unbroken, broken):
            sums.add(*made_step(number))
        if number + 1 == broken_off_after:
            state = json.loads(json.dumps(broken.state_dict(1)))
            broken = StepSums()
            broken.load_state_dict(state)
    expected = unbroken.read(1)
    assert broken.read(1) == expected
    losses = torch.cat([one for number in range(6) for one in made_step(number)[1]])
    assert expected["loss"] == pytest.approx(losses.mean().item())
    assert (expected["samples"], expected["damaged"]) == (checksum(torch.arange(48)), 6)
    unbroken.add(*made_step(9))
    following = unbroken.read(1)
    assert following["samples"] == sum(checksum(batch.rows) for batch in made_step(9)[0])
    assert following["damaged"] == 7


def test_a_loss_that_is_no_number_stays_none_in_a_checkpoint(one_rank):
    sums = StepSums()
    sums.add(made_step(0)[0], [torch.tensor([1.0, float("inf")])])
    state = json.loads(json.dumps(sums.state_dict(1), allow_nan=False))
    sums.load_state_dict(state)
    sums.add(*made_step(1))
    reading = sums.read(1)
    assert reading["loss"] != reading["loss"]
    sums.add(*made_step(2))
    assert sums.read(1)["loss"] == pytest.approx(torch.cat(made_step(2)[1]).mean().item())


def summed_up(output: Path) -> list[dict[str, Any]]:
    """The lines, as far as they do not depend on the time that steps take."""
    kept = ("step", "loss", "grad_norm", "lr", "samples", "damaged", "skipped")
    return [{name: line[name] for name in kept} for line in steps(output)]


def run_ranks(view: Path, output: Path, *more: str) -> tuple[list[int], list[str]]:
    return wait_for_ranks(start_ranks([settings(view, output, *RECIPE, *more)] * 2))


def test_a_run_that_is_stopped_and_killed_between_two_lines_has_the_log_of_an_unbroken_one(tmp_path):
    view = make_view(tmp_path, num_samples=180)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    # One on the first rank, and two on the other.
    samples = [sample for rank in range(2) for sample in samples_of_step(view, 1, rank=rank, world_size=2)[: rank + 1]]
    with damaged_pictures(view, samples):
        stream = train_stream(view)
        num_damaged = sum(len(batch.damaged) for _ in range(LENGTH // 9) for (batch,) in stream)
        to_the_end = f"--max_steps={LENGTH}"
        codes, outputs = run_ranks(view, unbroken, to_the_end)
        assert codes == [0, 0], outputs
        ranks = start_ranks([settings(view, broken, *RECIPE)] * 2)
        wait_for_step(broken, 4, ranks)
        ranks[1].send_signal(signal.SIGTERM)
        codes, outputs = wait_for_ranks(ranks)
        assert codes == [75, 75], outputs
        [*_, stopped_at] = committed_steps(broken / "checkpoints")
        ranks = start_ranks([settings(view, broken, *RECIPE)] * 2)
        wait_for_step(broken, int(stopped_at[5:]) + 8, ranks)
        for rank in ranks:
            rank.kill()
        wait_for_ranks(ranks)
        [*_, killed_behind] = committed_steps(broken / "checkpoints")
        codes, outputs = run_ranks(view, broken, to_the_end)
    assert codes == [0, 0], outputs
    assert stopped_at < killed_behind
    assert f"resuming at step {int(killed_behind[5:])} of {LENGTH}" in outputs[0]
    lines = summed_up(unbroken)
    assert [line["step"] for line in lines] == [step for step in range(1, LENGTH + 1) if step % 4 == 0 or step % 9 == 0]
    assert summed_up(broken) == lines
    assert lines[-1]["damaged"] == num_damaged > 3
