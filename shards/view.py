"""A view: which samples of which shards form train, val and test, with what target. It copies no picture.

A folder with `samples-<fingerprint>.parquet` and `view.json`; the latter is replaced last and in one step, so a
reader sees the whole old view or the whole new one.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LEFTOVER_AGE_SECONDS, Storage, open_storage

VIEW_VERSION = 1
SPLITS = ("train", "val", "test")
VIEW_SCHEMA = pa.schema(
    [
        ("dataset", pa.int32()),  # index into view.json's "datasets"
        ("shard", pa.string()),  # name of the tar
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),  # bytes from the start of the tar
        ("image_length", pa.int64()),
        ("split", pa.string()),
        ("target", pa.list_(pa.float32())),  # probabilities in the order of the classes
    ]
)
_REQUIRED = {"schema_version": int, "fingerprint": str, "samples": str, "datasets": list}
_ORDER = [("dataset", "ascending"), ("shard", "ascending"), ("image_offset", "ascending")]


@dataclass(frozen=True)
class ViewSplit:
    """The samples of one split, those of a shard together and in the shard's order.

    `rows` is a table of VIEW_SCHEMA; `shard_sizes` int64, how many neighbouring rows each shard holds.
    """

    rows: pa.Table
    shard_sizes: np.ndarray


@dataclass(frozen=True)
class View:
    """An opened view."""

    url: str
    fingerprint: str
    description: dict[str, Any]
    """All of `view.json`: recipe, counts, inputs."""
    datasets: list[Storage]
    table: pa.Table

    def split(self, name: str) -> ViewSplit:
        """The samples of `train`, `val` or `test`. Raises UserError for an empty or unknown split."""
        rows = self.table.filter(pc.equal(self.table["split"], name))
        if not rows.num_rows:
            raise UserError(
                f"{self.url}: split {name!r} has no samples",
                f"it has {self.description['counts']['splits']}; curate more posts or change the recipe's split shares",
            )
        return ViewSplit(rows=rows, shard_sizes=_run_lengths(rows))


def target_array(rows: pa.Table) -> np.ndarray:
    """The targets of a view's rows, float32 `(n, classes)`."""
    values = pc.list_flatten(rows["target"]).to_numpy().astype(np.float32)
    return values.reshape(rows.num_rows, -1)


def fingerprint(table: pa.Table) -> str:
    """The sha256 (hex) of a view's rows: equal for equal rows, whatever wrote them."""
    sink = pa.BufferOutputStream()
    combined = table.combine_chunks().replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, combined.schema) as stream:
        stream.write_table(combined)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def write_view(
    url: str, table: pa.Table, *, datasets: Sequence[str], description: Mapping[str, Any]
) -> tuple[str, pa.Table]:
    """Write a view of `table` (VIEW_SCHEMA, any order) and make it visible in one step.

    `description` is kept in `view.json`; its `counts` must have `splits`. Returns the fingerprint and the sorted rows.
    """
    table = table.cast(VIEW_SCHEMA).sort_by(_ORDER)
    mark = fingerprint(table)
    storage = open_storage(url, create=True)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    samples_name = f"samples-{mark[:12]}.parquet"
    previous = _samples_name(storage)
    storage.replace(samples_name, sink.getvalue())
    document = {
        "schema_version": VIEW_VERSION,
        "fingerprint": mark,
        "samples": samples_name,
        "datasets": [_relative(dataset, storage.url) for dataset in datasets],
        **description,
    }
    storage.replace("view.json", json.dumps(document, indent=2).encode() + b"\n")
    if previous not in (None, samples_name):
        storage.delete(previous)
    storage.discard_leftovers(LEFTOVER_AGE_SECONDS)
    return mark, table


def open_view(url: str) -> View:
    """Open a view and check that its rows are those that `view.json` speaks of. Raises UserError if not."""
    storage = open_storage(url)
    description, table = _read(storage, url)
    if table is None:
        # Perhaps a new view took this one's place between the two reads.
        description, table = _read(storage, url)
    if table is None:
        raise UserError(
            f"{url}/{description['samples']}: its rows are not those that view.json was written for",
            "run `xmodal curate` again",
        )
    datasets = [open_storage(_absolute(dataset, storage.url)) for dataset in description["datasets"]]
    return View(
        url=url,
        fingerprint=description["fingerprint"],
        description=description,
        datasets=datasets,
        table=table,
    )


def _read(storage: Storage, url: str) -> tuple[dict[str, Any], pa.Table | None]:
    """What `view.json` says, and the rows that it speaks of; None for rows that are not there, or others."""
    try:
        content = storage.read("view.json")
    except FileNotFoundError:
        raise UserError(f"{url}: no view.json, so this is no view", "run `xmodal curate` first") from None
    description = parse_json_object(content, f"{url}/view.json", "run `xmodal curate` again", _REQUIRED)
    if description.get("schema_version") != VIEW_VERSION:
        raise UserError(
            f"{url}/view.json: schema_version: {description.get('schema_version')!r} is not {VIEW_VERSION}",
            "run `xmodal curate` again with this version of xmodal",
        )
    table = _read_samples(storage, description["samples"])
    whole = table is not None and fingerprint(table) == description["fingerprint"]
    return description, table if whole else None


def _samples_name(storage: Storage) -> str | None:
    """The samples file of the view that is there now; None where there is none, or its document is damaged."""
    try:
        return parse_json_object(storage.read("view.json"), "view.json", "")["samples"]
    except (FileNotFoundError, UserError, KeyError):
        return None


def _read_samples(storage: Storage, name: str) -> pa.Table | None:
    try:
        return pq.read_table(io.BytesIO(storage.read(name))).cast(VIEW_SCHEMA)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _relative(dataset: str, view_url: str) -> str:
    # Relative, so that a folder that holds both can be moved or copied.
    return dataset if "://" in dataset else os.path.relpath(dataset, view_url)


def _absolute(dataset: str, view_url: str) -> str:
    return dataset if "://" in dataset else os.path.normpath(os.path.join(view_url, dataset))


def _run_lengths(rows: pa.Table) -> np.ndarray:
    """Lengths of the runs of equal (dataset, shard)."""
    dataset = rows["dataset"].to_numpy()
    shard = rows["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero((np.diff(dataset, prepend=-1) != 0) | (np.diff(shard, prepend=-1) != 0))
    return np.diff(starts, append=len(dataset)).astype(np.int64)
