"""A view: which samples of which shards form train, val and test, with what target. It copies no picture.

A folder with `samples-<fingerprint>.parquet`, `shards-<fingerprint>.parquet`, what else its maker puts beside them, and
`view.json`; the latter is replaced last and in one step, so a reader sees the whole old view or the whole new one.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.index import index_metadata
from shards.json_object import parse_json_object
from shards.storage import LEFTOVER_AGE_SECONDS, Storage, open_storage

VIEW_VERSION = 3
SPLITS = ("train", "val", "test")
VIEW_SCHEMA = pa.schema(
    [
        ("dataset", pa.int32()),  # index into view.json's "datasets"
        ("shard", pa.string()),  # name of the tar
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),  # bytes from the start of the tar
        ("image_length", pa.int64()),
        ("image_crc32", pa.uint32()),
        ("split", pa.string()),
        ("target", pa.list_(pa.float32())),  # probabilities in the order of the classes
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        ("dataset", pa.int32()),
        ("shard", pa.string()),
        ("bytes", pa.int64()),  # of the tar
        ("sha256", pa.string()),  # of the tar, hex
    ]
)
_REQUIRED = {"schema_version": int, "fingerprint": str, "samples": str, "shards": str, "datasets": list}
# A document that anybody may have written must not name files elsewhere.
_TABLE_NAME = re.compile(r"(samples|shards)-[0-9a-f]{12}\.parquet")
_BESIDE_NAME = re.compile(r"(dropped|conflicts)-[0-9a-f]{12}\.(parquet|svg)")
_BATCH_ROWS = 1 << 16
"""A view is hashed and written so many rows at a time. Another number would give every view another fingerprint."""
_ORDER = [("dataset", "ascending"), ("shard", "ascending"), ("image_offset", "ascending")]


@dataclass(frozen=True)
class ViewSplit:
    """The samples of one split, those of a shard together and in the shard's order.

    `rows` is a table of VIEW_SCHEMA; `shards` one of SHARD_SCHEMA, in the order in which the rows have them;
    `shard_sizes` int64, how many neighbouring rows each of these shards holds.
    """

    rows: pa.Table
    shards: pa.Table
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
    shards: pa.Table

    def split(self, name: str) -> ViewSplit:
        """The samples of `train`, `val` or `test`. Raises UserError for an empty or unknown split."""
        rows = self.table.filter(pc.equal(self.table["split"], name))
        if not rows.num_rows:
            raise UserError(
                f"{self.url}: split {name!r} has no samples",
                f"it has {self.description['counts']['splits']}; curate more posts or change the recipe's split shares",
            )
        shard_sizes = _run_lengths(rows)
        firsts = rows.select(["dataset", "shard"]).take(np.concatenate([[0], np.cumsum(shard_sizes)[:-1]]))
        known = {place: number for number, place in enumerate(_places(self.shards))}
        shards = self.shards.take([known[place] for place in _places(firsts)])
        return ViewSplit(rows=rows, shards=shards, shard_sizes=shard_sizes)


def target_array(rows: pa.Table) -> np.ndarray:
    """The targets of a view's rows, float32 `(n, classes)`. Raises UserError where they are not all of one length."""
    lengths = pc.fill_null(pc.list_value_length(rows["target"]), -1).to_numpy()
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise UserError(
            f"{rows['shard'][row]}: {rows['key'][row]}: its target has {lengths[row]} values, others have {lengths[0]}",
            "give all samples targets for the same classes",
        )
    values = pc.list_flatten(rows["target"]).to_numpy().astype(np.float32)
    return values.reshape(rows.num_rows, len(values) // max(1, rows.num_rows))


def shard_entry(dataset: int, shard: str, index: pa.Table) -> dict[str, Any]:
    """The row of a shard in a table of SHARD_SCHEMA."""
    metadata = index_metadata(index)
    return {
        "dataset": dataset,
        "shard": shard,
        "bytes": int(metadata["tar_bytes"]),
        "sha256": metadata["tar_sha256"],
    }


def fingerprint(table: pa.Table, shards: pa.Table) -> str:
    """The sha256 (hex) of a view's rows and of what shards they are in: equal for equal ones, whatever wrote them."""
    hashing = hashlib.sha256()
    for part in (table, shards):
        for start in range(0, part.num_rows, _BATCH_ROWS):
            _hash_rows(hashing, part.slice(start, _BATCH_ROWS))
    return hashing.hexdigest()


def _hash_rows(hashing: "hashlib._Hash", rows: pa.Table) -> None:
    """At most _BATCH_ROWS of them."""
    hashing.update(f"{rows.num_columns} x {rows.num_rows}".encode())
    for column in rows.columns:
        for part in _plain_parts(pa.concat_arrays(column.chunks)):
            hashing.update(part.tobytes())


def _plain_parts(array: pa.Array) -> Iterator[np.ndarray]:
    """The bytes of an array's values, whatever memory they lie in: Arrow's own messages hold its neighbours, too."""
    yield array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_list(array.type):
        yield pc.list_value_length(array).fill_null(0).to_numpy()
        yield from _plain_parts(array.flatten())
    elif pa.types.is_string(array.type):
        texts = array.fill_null("")
        yield pc.binary_length(texts).to_numpy()
        _, offsets, characters = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
        yield np.frombuffer(characters or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    else:
        yield array.fill_null(0).to_numpy()


def in_order(table: pa.Table, shards: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows (VIEW_SCHEMA) and shards (SHARD_SCHEMA) in any order → as a view has them, shards without rows left out.

    Raises KeyError for a row of a shard that is not among the shards.
    """
    table = table.cast(VIEW_SCHEMA).sort_by(_ORDER)
    known = {place: number for number, place in enumerate(_places(shards))}
    used = table.group_by(["dataset", "shard"]).aggregate([]).sort_by(_ORDER[:2])
    return table, shards.cast(SHARD_SCHEMA).take(pa.array([known[place] for place in _places(used)], pa.int64()))


def write_view(
    url: str, table: pa.Table, shards: pa.Table, *, datasets: Sequence[str], description: Mapping[str, Any]
) -> tuple[str, pa.Table]:
    """Write a view of `table` (VIEW_SCHEMA), whose shards are among `shards` (SHARD_SCHEMA), visible in one step.

    `description` is kept in `view.json`; its `counts` must have `splits`. Returns the fingerprint and the sorted rows.
    """
    table, shards = in_order(table, shards)
    writer = ViewWriter()
    writer.add(table)
    return writer.finish(url, shards, datasets=datasets, description=description), table


class ViewWriter:
    """Writes a view whose rows come piece by piece, in the order of (dataset, shard, offset); nothing is visible until
    `finish`.

    In memory are the rows as Parquet, a few dozen bytes each.
    """

    def __init__(self) -> None:
        self._hashing = hashlib.sha256()
        self._sink = io.BytesIO()
        self._parquet = pq.ParquetWriter(self._sink, VIEW_SCHEMA, compression="zstd")
        self._waiting = VIEW_SCHEMA.empty_table()

    def add(self, rows: pa.Table) -> None:
        """Add rows (VIEW_SCHEMA) that come after all that were added before."""
        self._waiting = pa.concat_tables([self._waiting, rows.cast(VIEW_SCHEMA)])
        while self._waiting.num_rows >= _BATCH_ROWS:
            self._write(self._waiting.slice(0, _BATCH_ROWS))
            self._waiting = self._waiting.slice(_BATCH_ROWS)

    def _write(self, rows: pa.Table) -> None:
        _hash_rows(self._hashing, rows)
        self._parquet.write_table(rows)

    def finish(
        self,
        url: str,
        shards: pa.Table,
        *,
        datasets: Sequence[str],
        description: Mapping[str, Any],
        beside: Mapping[str, tuple[str, bytes]] = MappingProxyType({}),
    ) -> str:
        """Make the view visible at `url`. `shards` (SHARD_SCHEMA) are those that the rows are in, in their order.

        `description` is kept in `view.json`; its `counts` must have `splits`. `beside` are files of its maker's: key in
        `view.json` → (`dropped.parquet`, `conflicts.parquet` or `conflicts.svg`, its bytes). Returns the fingerprint.
        Whatever another view had here is removed; two writers must not be at work at one `url` at the same time.
        """
        if self._waiting.num_rows:
            self._write(self._waiting)
        self._parquet.close()
        for start in range(0, shards.num_rows, _BATCH_ROWS):
            _hash_rows(self._hashing, shards.slice(start, _BATCH_ROWS))
        mark = self._hashing.hexdigest()
        shard_sink = io.BytesIO()
        pq.write_table(shards, shard_sink, compression="zstd")
        files = {
            "samples": (_marked("samples.parquet", mark), self._sink.getvalue()),
            "shards": (_marked("shards.parquet", mark), shard_sink.getvalue()),
        }
        for kind, (name, content) in beside.items():
            # They may differ where the rows do not, as with another step that dropped the same samples.
            files[kind] = (_marked(name, hashlib.sha256(content).hexdigest()), content)
        names = {kind: name for kind, (name, _) in files.items()}
        storage = open_storage(url, create=True)
        for name, content in files.values():
            storage.replace(name, content)
        document = {
            "schema_version": VIEW_VERSION,
            "fingerprint": mark,
            **names,
            "datasets": [_relative(dataset, storage.url) for dataset in datasets],
            **description,
        }
        storage.replace("view.json", json.dumps(document, indent=2).encode() + b"\n")
        for name in storage.names():
            if (_TABLE_NAME.fullmatch(name) or _BESIDE_NAME.fullmatch(name)) and name not in names.values():
                storage.delete(name)
        storage.discard_leftovers(LEFTOVER_AGE_SECONDS)
        return mark


def _marked(name: str, mark: str) -> str:
    """`samples.parquet` → `samples-<12 digits of its mark>.parquet`."""
    stem, _, extension = name.rpartition(".")
    return f"{stem}-{mark[:12]}.{extension}"


def open_view(url: str) -> View:
    """Open a view and check that its rows are those that `view.json` speaks of. Raises UserError if not."""
    storage = open_storage(url)
    description, tables = _read(storage, url)
    if tables is None:
        # Perhaps a new view took this one's place between the reads.
        description, tables = _read(storage, url)
    if tables is None:
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
        table=tables[0],
        shards=tables[1],
    )


def read_beside(view: View, kind: str) -> bytes:
    """A file that the maker of a view has put beside it. Raises UserError if there is none."""
    name = view.description.get(kind)
    try:
        if isinstance(name, str) and _BESIDE_NAME.fullmatch(name):
            return open_storage(view.url).read(name)
    except FileNotFoundError:
        pass
    raise UserError(f"{view.url}/view.json: {kind}: names no file that is there", "run `xmodal curate` again")


def _read(storage: Storage, url: str) -> tuple[dict[str, Any], tuple[pa.Table, pa.Table] | None]:
    """What `view.json` says, and the rows and shards that it speaks of; None for what is not there, or others."""
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
    table = _read_table(storage, description["samples"], VIEW_SCHEMA)
    shards = _read_table(storage, description["shards"], SHARD_SCHEMA)
    if table is None or shards is None or fingerprint(table, shards) != description["fingerprint"]:
        return description, None
    return description, (table, shards)


def _read_table(storage: Storage, name: str, schema: pa.Schema) -> pa.Table | None:
    if not _TABLE_NAME.fullmatch(name):
        return None
    try:
        return pq.read_table(io.BytesIO(storage.read(name))).cast(schema)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _places(table: pa.Table) -> list[tuple[int, str]]:
    return list(zip(table["dataset"].to_pylist(), table["shard"].to_pylist(), strict=True))


def _relative(dataset: str, view_url: str) -> str:
    if "://" in dataset:
        return dataset
    # Relative, so that a folder that holds both can be moved or copied; from elsewhere no path leads to it.
    return os.path.abspath(dataset) if "://" in view_url else os.path.relpath(dataset, view_url)


def _absolute(dataset: str, view_url: str) -> str:
    return dataset if "://" in dataset else os.path.normpath(os.path.join(view_url, dataset))


def _run_lengths(rows: pa.Table) -> np.ndarray:
    """Lengths of the runs of equal (dataset, shard)."""
    dataset = rows["dataset"].to_numpy()
    shard = rows["shard"].dictionary_encode().combine_chunks().indices.to_numpy()
    starts = np.flatnonzero((np.diff(dataset, prepend=-1) != 0) | (np.diff(shard, prepend=-1) != 0))
    return np.diff(starts, append=len(dataset)).astype(np.int64)
