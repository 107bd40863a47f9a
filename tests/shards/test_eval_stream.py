"""The streams of evaluation: every sample once, on all ranks as many batches."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from made_pictures import jpeg
from streams import CONFIG, assert_equal, assert_runs_equal, damage

from shards.augment import eval_pixels
from shards.stream import EvalStream, padded_batches
from shards.view import View


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_in_evaluation_every_sample_counts_exactly_once(view: View, world_size: int, batch_size: int) -> None:
    streams = [
        EvalStream(view, split="val", config=CONFIG, size=16, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(stream) for stream in streams]
    assert {len(run) for run in batches} == {len(streams[0])}
    counted = []
    for batch in (batch for run in batches for batch in run):
        assert batch.pixels.shape == (batch_size, 3, 16, 16)
        assert torch.equal(batch.mask, batch.rows >= 0)
        counted += batch.rows[batch.mask].tolist()
    assert counted == list(range(11))


def test_evaluation_pixels_and_targets_are_those_of_the_row(view: View) -> None:
    rows = view.split("val").rows.to_pylist()
    for batch in EvalStream(view, split="val", config=CONFIG, size=16, crop_share=0.9, batch_size=4):
        for place, row in enumerate(batch.rows.tolist()):
            if row < 0:
                assert not batch.pixels[place].any()
                continue
            content = jpeg(44, 36, seed=int(rows[row]["key"][4:8]))
            assert np.array_equal(batch.pixels[place].numpy(), eval_pixels(content, 16, 0.9))
            assert torch.equal(batch.targets[place], torch.tensor(rows[row]["target"]))


def test_evaluation_of_a_middle_part_loses_no_detail_to_scaled_decoding(view: View) -> None:
    # Half of the shorter side is 18 pixels; a JPEG decoded at half its size would have 9 of them.
    key = view.split("val").rows["key"][0].as_py()
    [pixels, *_] = next(
        iter(EvalStream(view, split="val", config=CONFIG, size=16, crop_share=0.5, batch_size=1))
    ).pixels
    whole = jpeg(44, 36, seed=int(key[4:8]))
    assert np.array_equal(pixels.numpy(), eval_pixels(whole, 16, 0.5))


def test_evaluation_with_workers_gives_the_same_batches(view: View) -> None:
    expected = list(EvalStream(view, split="val", config=CONFIG, size=16, batch_size=4))
    got = list(EvalStream(view, split="val", config=replace(CONFIG, num_workers=2), size=16, batch_size=4))
    assert_runs_equal([[batch] for batch in got], [[batch] for batch in expected])


def test_an_evaluation_stream_can_be_passed_over_again(view: View) -> None:
    stream = EvalStream(view, split="val", config=CONFIG, size=16, batch_size=4)
    assert_equal(list(stream), list(stream))


def test_in_evaluation_an_undecodable_picture_is_masked_and_named(view_copy: View) -> None:
    keys = damage(view_copy, [3], split="val")
    batches = list(EvalStream(view_copy, split="val", config=CONFIG, size=16, batch_size=4))
    assert [damage.key for batch in batches for damage in batch.damaged] == keys
    assert [row for batch in batches for row in batch.rows[batch.mask].tolist()] == [0, 1, 2, *range(4, 11)]


def test_padded_batches_are_equal_on_all_ranks_over_a_grid() -> None:
    for num_samples in (0, 1, 7, 8, 9, 100):
        for world_size in (1, 2, 3, 8):
            for batch_size in (1, 4, 16):
                ranks = [padded_batches(num_samples, batch_size, rank, world_size) for rank in range(world_size)]
                assert all(len(one) == len(other) for one, other in pairwise(ranks))
                assert {len(batch) for batches in ranks for batch in batches} <= {batch_size}
                rows = [row for batches in ranks for batch in batches for row in batch]
                assert [row for row in rows if row >= 0] == list(range(num_samples))
