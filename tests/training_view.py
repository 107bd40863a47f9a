"""A small view that can be learned: bright pictures are positive, dark ones negative, those between neutral."""

import io
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from shards.augment import AugmentConfig
from shards.dataset import finish
from shards.index import read_index
from shards.storage import LocalStorage
from shards.stream import StreamConfig, TrainStream
from shards.view import SHARD_SCHEMA, VIEW_SCHEMA, open_view, shard_entry, write_view
from shards.writer import Sample, write_shard

SOFT_LABELS = ([0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8])


def make_view(folder: Path, *, num_samples: int, samples_per_shard: int = 15, spoilt: Collection[int] = ()) -> Path:
    """Write `folder/dataset` and `folder/view`; every eighth sample is for validation. Returns the view's folder.

    The targets of `spoilt` samples are no numbers.
    """
    storage = LocalStorage(folder / "dataset", create=True)
    generator = np.random.default_rng(0)
    for number, start in enumerate(range(0, num_samples, samples_per_shard)):
        samples = [_sample(i, generator) for i in range(start, min(start + samples_per_shard, num_samples))]
        write_shard(storage, f"{number:06d}", samples)
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    tables, shards = [], []
    for name in storage.names(".tar"):
        index = read_index(storage, name)
        tables.append(index.append_column("shard", pa.array([name] * index.num_rows)))
        shards.append(shard_entry(0, name, index))
    table = pa.concat_tables(tables)
    splits = ["val" if row % 8 == 7 else "train" for row in range(table.num_rows)]
    targets = [[math.nan] * 3 if row in spoilt else label for row, label in enumerate(table["soft_label"].to_pylist())]
    rows = (
        table.append_column("dataset", pa.array([0] * table.num_rows, pa.int32()))
        .append_column("split", pa.array(splits))
        .append_column("target", pa.array(targets, VIEW_SCHEMA.field("target").type))
    )
    view = folder / "view"
    write_view(
        str(view),
        rows.select(VIEW_SCHEMA.names),
        pa.Table.from_pylist(shards, schema=SHARD_SCHEMA),
        datasets=[str(folder / "dataset")],
        description={"counts": {"splits": {name: splits.count(name) for name in ("train", "val", "test")}}},
    )
    return view


def train_stream(view: Path, *, rank: int = 0, world_size: int = 1) -> TrainStream:
    """What a rank trains on by `launchers.settings`."""
    config = StreamConfig(num_lanes=8, num_workers=0, max_damaged_share=1)
    return TrainStream(
        open_view(str(view)),
        config=config,
        size=32,
        augment=AugmentConfig(),
        global_batch_size=16,
        rank=rank,
        world_size=world_size,
    )


def samples_of_step(view: Path, step: int, *, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Rows of the view: a rank's samples of a step (from 0) of the first epoch."""
    for number, (batch,) in enumerate(train_stream(view, rank=rank, world_size=world_size)):
        if number == step:
            return open_view(str(view)).split("train").rows.take(batch.rows.tolist()).to_pylist()
    raise AssertionError(f"the epoch ends before step {step}")


@contextmanager
def damaged_pictures(view: Path, samples: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Within it, the pictures of these rows of a view cannot be decoded."""
    before = {path: path.read_bytes() for path in (view.parent / "dataset").glob("*.tar")}
    for sample in samples:
        with (view.parent / "dataset" / sample["shard"]).open("r+b") as file:
            file.seek(sample["image_offset"])
            file.write(bytes(sample["image_length"]))
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def _sample(number: int, generator: np.random.Generator) -> Sample:
    label = number % 3
    pixels = generator.normal([60, 128, 196][label], 25, (32, 32, 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    fields = {"soft_label": SOFT_LABELS[label], "post_id": str(number)}
    return Sample(key=f"{number}-0", image=file.getvalue(), image_extension="png", fields=fields)
