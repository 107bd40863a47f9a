"""Streams of the view of conftest.py, and what is compared of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shards.augment import AugmentConfig
from shards.batches import Batch
from shards.stream import StreamConfig, TrainStream
from shards.view import View

CONFIG = StreamConfig(num_lanes=4, shards_per_block=2, num_workers=0, seed=11)
# 41 samples to train: 10 a lane, so 5 steps of 8 an epoch, and one sample is left out.
STEPS = 5


def train(view: View, config: StreamConfig = CONFIG, **options: Any) -> TrainStream:
    options = {"size": 16, "augment": AugmentConfig(color_jitter=0.2), "global_batch_size": 8} | options
    return TrainStream(view, config=config, **options)


def steps(stream: TrainStream, count: int) -> Iterator[list[Batch]]:
    """The next `count` steps, over as many epochs as they take."""
    while count:
        for step in stream:
            yield step
            count -= 1
            if not count:
                return


def joined(batches: list[Batch]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    return (
        [row for batch in batches for row in batch.rows.tolist()],
        torch.cat([batch.pixels for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
    )


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    """The same samples in the same order with the same pixels, however they are cut into batches."""
    (rows, pixels, targets), (other_rows, other_pixels, other_targets) = joined(one), joined(other)
    assert rows == other_rows
    assert torch.equal(pixels, other_pixels)
    assert torch.equal(targets, other_targets)


def assert_runs_equal(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert len(one) == len(other)
    for step, other_step in zip(one, other, strict=True):
        assert_equal(step, other_step)


def damage(view: View, rows: list[int], split: str = "train") -> list[str]:
    """Overwrite the pictures of a split's rows within their committed tars. Returns their keys."""
    table = view.split(split).rows
    keys = []
    for row in rows:
        place = table.slice(row, 1).to_pylist()[0]
        with open(Path(view.datasets[0].url, place["shard"]), "r+b") as file:
            file.seek(place["image_offset"])
            file.write(bytes(place["image_length"]))
        keys.append(place["key"])
    return keys
