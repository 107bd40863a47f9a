"""Any WebDataset as a view, so that what streams views streams it too: all samples of its shards, in one split."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from shards.errors import UserError
from shards.index import DamagedTarError, read_index
from shards.inspection import find_shards
from shards.view import SHARD_SCHEMA, VIEW_SCHEMA, View, fingerprint, in_order, shard_entry

log = logging.getLogger(__name__)

MAX_CONCURRENT_INDEXES = 16

Target = Callable[[pa.Table], np.ndarray]
"""From the index of a shard (key, and its JSON's fields as columns) to the targets, float32 `(rows, classes)`."""


def open_shards(url: str, *, target: Target | None = None, split: str = "train", skip_damaged: bool = False) -> View:
    """All samples of the tars at `url` (a folder, a prefix, or a pattern of tars) as a view of one split.

    Where a shard has no index beside it, it is read whole to make one, each time: `xmodal shards index` keeps them.
    `target` says what a sample's target is; without it, it is the JSON's `soft_label`, or none at all, `(rows, 0)`,
    where the shards have no such field. Raises UserError for no shards, or one that cannot be read, unless damaged ones
    are to be skipped: then it is logged, and left out.
    """
    shards = find_shards(url)

    def index_of(name: str) -> pa.Table | None:
        try:
            return read_index(shards.storage, name, keep=False)
        except FileNotFoundError as error:
            raise UserError(f"{shards.storage.url}/{name}: no such shard", "check the URL") from error
        except OSError as error:
            raise UserError(f"{shards.storage.url}/{name}: cannot be read: {error}", "see to the storage") from error
        except DamagedTarError as error:
            if not skip_damaged:
                raise
            log.warning("%s; left out", error.what)
            return None

    with ThreadPoolExecutor(MAX_CONCURRENT_INDEXES) as pool:
        indexes = list(pool.map(index_of, shards.names))
    places = [(name, index) for name, index in zip(shards.names, indexes, strict=True) if index is not None]
    if target is None:
        target = _soft_labels if any("soft_label" in index.column_names for _, index in places) else _no_target
    rows = [_rows(index, name, split, target) for name, index in places if index.num_rows]
    if not rows:
        raise UserError(f"{url}: no sample with a picture", "see what `xmodal shards verify` says of these shards")
    table, entries = in_order(
        pa.concat_tables(rows),
        pa.Table.from_pylist([shard_entry(0, name, index) for name, index in places], schema=SHARD_SCHEMA),
    )
    return View(
        url=url,
        fingerprint=fingerprint(table, entries),
        description={"counts": {"splits": {split: table.num_rows}}},
        datasets=[shards.storage],
        table=table,
        shards=entries,
    )


def _rows(index: pa.Table, shard: str, split: str, target: Target) -> pa.Table:
    count = index.num_rows
    try:
        targets = np.asarray(target(index), dtype=np.float32)
    except (KeyError, ValueError, TypeError) as error:
        what = f"{shard}: no targets: {type(error).__name__}: {error}"
        raise UserError(what, "give `target`, or shards all of whose samples have the field") from error
    if targets.ndim != 2 or len(targets) != count:
        raise UserError(f"{shard}: targets of shape {targets.shape}, of {count} samples", "return (samples, classes)")
    columns = {
        "dataset": pa.array(np.zeros(count, dtype=np.int32)),
        "shard": pa.array([shard] * count),
        "split": pa.array([split] * count),
        "target": pa.array(list(targets), VIEW_SCHEMA.field("target").type),
    }
    return pa.table({name: columns[name] if name in columns else index[name] for name in VIEW_SCHEMA.names}).cast(
        VIEW_SCHEMA
    )


def _soft_labels(index: pa.Table) -> np.ndarray:
    return np.array(index["soft_label"].to_pylist(), dtype=np.float32)


def _no_target(index: pa.Table) -> np.ndarray:
    return np.zeros((index.num_rows, 0), dtype=np.float32)
