"""A benchmark's pictures as the trainer takes them: shards with one-hot labels, and a view for each division."""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.dataset import finish, shard_names
from shards.index import read_index
from shards.storage import LocalStorage
from shards.view import SHARD_SCHEMA, SPLITS, VIEW_SCHEMA, shard_entry, write_view
from shards.writer import Sample, write_shard
from xmodal.benchmarks import Benchmark
from xmodal.crawl.pictures import Picture
from xmodal.curation.benchmark_pictures import read_picture
from xmodal.curation.datasets import map_in_order
from xmodal.finetuning.divisions import LEFT_OUT, classes_of
from xmodal.labels import CLASSES, one_hot

log = logging.getLogger(__name__)

_PICTURES_PER_SHARD = 64
"""Few: what lies in one shard in the table's order is mixed better with more shards."""
_OF_INDEX = ("key", "image_ext", "image_offset", "image_length", "image_crc32")
_SCHEMA = pa.schema(
    [
        *(VIEW_SCHEMA.field(name) for name in _OF_INDEX),
        ("pdq", pa.string()),
        ("place", pa.int64()),
        VIEW_SCHEMA.field("dataset"),
        VIEW_SCHEMA.field("shard"),
    ]
)
"""Of `read_pictures`."""


def write_pictures(benchmark: Benchmark, folder: Path) -> None:
    """Write all pictures that can be decoded as a dataset; done again, it keeps the shards that are there."""
    storage = LocalStorage(folder, create=True)
    classes = classes_of(benchmark)
    paths = (benchmark.image_path(place) for place in range(len(benchmark.paths)))
    found = enumerate(map_in_order(partial(read_picture, lossless=True), paths, len(os.sched_getaffinity(0))))
    for number in range(-(-len(benchmark.paths) // _PICTURES_PER_SHARD)):
        failures: list[dict[str, str]] = []
        samples = _samples(itertools.islice(found, _PICTURES_PER_SHARD), benchmark, classes, failures)
        write_shard(storage, f"{number:06d}", samples, failures)
    finish(
        storage,
        describe_shard=lambda index: {},
        describe_dataset=lambda shards: {"benchmark": benchmark.config.name},
    )


def _samples(
    found: Iterable[tuple[int, tuple[bytes, Picture] | str]],
    benchmark: Benchmark,
    classes: np.ndarray,
    failures: list[dict[str, str]],
) -> Iterator[Sample]:
    """The pictures that could be decoded; the others are added to `failures`."""
    for place, read in found:
        path = benchmark.paths[place]
        if isinstance(read, str):
            log.warning("%s: cannot be decoded (%s); left out", benchmark.image_path(place), read)
            failures.append({"path": path, "reason": read})
            continue
        content, picture = read
        fields = {
            "soft_label": one_hot(int(classes[place])),
            "path": path,
            "sha256": hashlib.sha256(content).hexdigest(),  # of the file, whatever was made of it
            "pdq": picture.pdq,
        }
        yield Sample(key=_key(place), image=picture.content, image_extension=picture.extension, fields=fields)


def read_pictures(folder: Path) -> pa.Table:
    """What the indexes say of the pictures that could be decoded: `place` in the benchmark, `pdq`, and where each lies.

    The columns of a view but `split` and `target` are among its own.
    """
    storage = LocalStorage(folder)
    tables = [_SCHEMA.empty_table()]
    for name in shard_names(storage):
        index = read_index(storage, name)
        if not index.num_rows:  # then it has no `pdq` either
            continue
        places = [int(key.partition("-")[0]) for key in index["key"].to_pylist()]
        tables.append(
            index.select([*_OF_INDEX, "pdq"])
            .append_column("place", pa.array(places, pa.int64()))
            .append_column("dataset", pa.array([0] * index.num_rows, pa.int32()))
            .append_column("shard", pa.array([name] * index.num_rows))
            .replace_schema_metadata()
        )
    return pa.concat_tables(tables)


def write_division_view(
    folder: Path, benchmark: Benchmark, dataset: Path, pictures: pa.Table, parts: np.ndarray
) -> None:
    """Write the view of one division: `parts`, text `(n,)`, says of each of the benchmark's pictures what it is for."""
    storage = LocalStorage(dataset)
    places = pictures["place"].to_numpy()
    splits, classes = parts[places], classes_of(benchmark)[places]
    rows = (
        pictures.append_column("split", pa.array(splits.tolist(), pa.string()))
        .append_column("target", pa.array([one_hot(class_id) for class_id in classes.tolist()]))
        .select(VIEW_SCHEMA.names)
        .filter(pa.array(splits != LEFT_OUT))
    )
    shards = [shard_entry(0, name, read_index(storage, name)) for name in shard_names(storage)]
    by_class = {
        split: {name: int(((splits == split) & (classes == class_id)).sum()) for class_id, name in enumerate(CLASSES)}
        for split in SPLITS
    }
    write_view(
        str(folder),
        rows,
        pa.Table.from_pylist(shards, schema=SHARD_SCHEMA),
        datasets=[str(dataset)],
        description={
            "counts": {
                "splits": {split: sum(counts.values()) for split, counts in by_class.items()},
                "splits_by_class": by_class,
            },
            "benchmark": benchmark.config.name,
        },
    )


def _key(place: int) -> str:
    return f"{place:06d}-0"
