"""Streams of damaged pictures, lost shards and reading processes that end."""

import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import CONFIG, STEPS, assert_runs_equal, damage, steps, train

from shards.errors import UserError
from shards.stream import told_of_lost_workers
from shards.view import View


def test_an_undecodable_picture_is_replaced_by_one_of_its_lane_and_counted(
    view_copy: View, caplog: pytest.LogCaptureFixture
) -> None:
    before = list(train(view_copy))
    stream = train(view_copy)
    order = stream.order(0)
    lanes = {int(row): lane for lane in range(4) for row in order.rows(lane, np.arange(order.samples_per_lane))}
    bad = [before[0][0].rows.tolist()[3], before[2][0].rows.tolist()[0]]
    keys = damage(view_copy, bad)
    after = list(stream)
    assert len(after) == STEPS
    assert [damage.key for [batch] in after for damage in batch.damaged] == keys
    assert stream.num_damaged == 2
    assert all(
        re.search(rf"\d\d\d\.tar: {key}: its bytes are not those that were indexed; replaced by", caplog.text)
        for key in keys
    )
    for [old], [new] in zip(before, after, strict=True):
        for place, (row, new_row) in enumerate(zip(old.rows.tolist(), new.rows.tolist(), strict=True)):
            if row in bad:
                assert new_row not in bad
                assert lanes[new_row] == lanes[row]
                assert new.pixels[place].any()
            else:
                assert new_row == row
                assert torch.equal(new.pixels[place], old.pixels[place])
        assert new.mask.all()


def test_replacements_are_the_same_for_any_ranks_and_workers_and_after_a_resume(view_copy: View) -> None:
    damage(view_copy, [2, 7, 19, 30])
    config = replace(CONFIG, max_damaged_share=0.5)
    expected = list(steps(train(view_copy, config), 2 * STEPS))
    assert sum(len(batch.damaged) for step in expected for batch in step) >= 6
    ranks = [
        list(steps(train(view_copy, replace(config, num_workers=rank), rank=rank, world_size=2), 2 * STEPS))
        for rank in range(2)
    ]
    assert_runs_equal([first + second for first, second in zip(*ranks, strict=True)], expected)
    resumed = train(view_copy, config)
    resumed.load_state_dict(resumed.state_dict() | {"epoch": 1, "step": 2})
    assert_runs_equal(list(resumed), expected[STEPS + 2 :])


def test_without_pixels_the_samples_are_the_same_and_pixels_can_be_had_again_in_another_epoch(view_copy: View) -> None:
    bad = [2, 7, 19, 30]
    damage(view_copy, bad)
    config = replace(CONFIG, max_damaged_share=0.5)
    expected = list(steps(train(view_copy, config, micro_batches=2), 3 * STEPS))
    stream = train(view_copy, replace(config, num_workers=1), micro_batches=2)
    stream.leave_out_pixels(np.isin(np.arange(41), bad))
    found = list(steps(stream, 2 * STEPS))
    for step, with_pixels in zip(found, expected[: 2 * STEPS], strict=True):
        for batch, other in zip(step, with_pixels, strict=True):
            assert batch.rows.tolist() == other.rows.tolist()
            assert torch.equal(batch.targets, other.targets)
            assert batch.pixels.shape == (4, 3, 0, 0)
            assert batch.mask.all()
            assert not batch.damaged
    stream.read_pixels()
    assert_runs_equal(list(stream), expected[2 * STEPS :])
    stream.leave_out_pixels(np.ones(41, dtype=bool))
    with pytest.raises(UserError, match="others of its lane are damaged"):
        next(iter(stream))


def test_more_undecodable_pictures_than_the_allowed_share_are_a_users_error(view_copy: View) -> None:
    damage(view_copy, list(range(0, 41, 2)))
    with pytest.raises(UserError, match=r"pictures are damaged, more than stream.max_damaged_share = 0.01") as caught:
        list(train(view_copy))
    assert "stream.max_damaged_share" in caught.value.remedy


def test_a_share_that_is_allowed_is_no_error(view_copy: View) -> None:
    damage(view_copy, list(range(0, 41, 2)))
    stream = train(view_copy, replace(CONFIG, max_damaged_share=1))
    assert len(list(stream)) == STEPS
    assert stream.num_damaged > 10


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_lane_without_a_decodable_picture_is_a_users_error(view_copy: View, num_workers: int) -> None:
    damage(view_copy, list(range(41)))
    with pytest.raises(UserError, match="others of its lane are damaged") as caught:
        list(train(view_copy, replace(CONFIG, num_workers=num_workers)))
    assert "check the shards" in caught.value.remedy


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_gone_is_a_users_error_that_names_it(view_copy: View, num_workers: int) -> None:
    Path(view_copy.datasets[0].url, "000005.tar").unlink()
    with pytest.raises(UserError, match=r"000005\.tar: this shard of the view is not there"):
        list(train(view_copy, replace(CONFIG, num_workers=num_workers)))


def test_a_share_of_zero_makes_the_first_damaged_picture_an_error(view_copy: View) -> None:
    [key] = damage(view_copy, [5])
    with pytest.raises(UserError, match=rf"1 of \d+ pictures are damaged.*000000\.tar: {key}: its bytes are not"):
        list(steps(train(view_copy, replace(CONFIG, max_damaged_share=0)), 2 * STEPS))


def test_a_batch_that_breaks_off_before_its_workers_end_is_told_is_a_lost_worker_too():
    def tell(*_: Any) -> None:
        # As torch's handler of SIGCHLD does.
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, tell)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(UserError, match="a reading process has ended"), told_of_lost_workers():
            exec(compile("raise ConnectionResetError", torch.utils.data.dataloader.__file__, "exec"))
        # Nothing is left that would come in the midst of what follows.
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_batch_that_breaks_off_and_whose_workers_end_is_not_told_is_a_lost_worker_too():
    with pytest.raises(UserError, match="a reading process has ended"), told_of_lost_workers():
        exec(compile("raise EOFError", torch.utils.data.dataloader.__file__, "exec"))
    with pytest.raises(EOFError), told_of_lost_workers():
        raise EOFError
