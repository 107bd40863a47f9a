"""Any WebDataset as a view, so that what streams views streams it too: all samples of its shards, in one split."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError
from shards.index import DamagedTarError, current_index, index_problems, read_index
from shards.inspection import Shards, find_shards
from shards.storage import CorruptObjectError
from shards.view import SHARD_SCHEMA, VIEW_SCHEMA, View, fingerprint, in_order, shard_entry

log = logging.getLogger(__name__)

MAX_CONCURRENT_READS = 16
MAX_BYTES_AT_A_TIME = 2 << 30
"""Of tars that are read whole, having no index; one that is larger is read alone."""

Target = Callable[[pa.Table], np.ndarray]
"""From the index of a shard (key, and its JSON's fields as columns) to the targets, float32 `(rows, classes)`."""


def open_shards(
    url: str, *, target: Target | None = None, split: str = "train", on_damage: Literal["stop", "skip"] = "stop"
) -> View:
    """All samples of the tars at `url` (a folder, a prefix, or a pattern of tars) as a view of one split.

    Where a shard has no index beside it, it is read whole to make one, each time: `xmodal shards index` keeps them.
    `target` says what a sample's target is; without it, it is the JSON's `soft_label`, or none at all, `(rows, 0)`,
    where the shards have no such field.

    A tar that is not whole, a sample without a picture, broken JSON, a key that comes twice and a name that points out
    of the folder are logged with shard and key. Then UserError is raised, or, to "skip" damage, all is opened that can
    be: without the tars that are not whole, and without samples that have no picture, or no `soft_label` where others
    have one. Pictures that do not decode are no matter of this: the streams count them.

    Raises UserError too for no shards, and for one that is not there or cannot be read.
    """
    shards = find_shards(url)
    places, problems = _read_indexes(shards)
    for problem in problems:
        log.warning("%s", problem)
    if problems and on_damage == "stop":
        others = f" (and {len(problems) - 1} more problems, which are logged)" if problems[1:] else ""
        raise UserError(
            f"{problems[0]}{others}", "fetch or write these shards again, or give on_damage='skip' to go on without"
        )
    if target is None and any("soft_label" in index.column_names for _, index in places):
        target = _soft_labels
        if on_damage == "skip":
            places = [(name, _with_soft_label(name, index)) for name, index in places]
    rows = [_rows(index, name, split, target or _no_target) for name, index in places if index.num_rows]
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


def _read_indexes(shards: Shards) -> tuple[list[tuple[str, pa.Table]], list[str]]:
    """Name and index of each shard that can be read to its end; and what is broken in them and in the others."""
    storage = shards.storage

    def current(name: str) -> pa.Table | None:
        with _told_to_user(storage.url, name):
            return current_index(storage, name)

    def size(name: str) -> int:
        with _told_to_user(storage.url, name):
            return storage.size(name)

    def made(name: str) -> pa.Table | str:
        with _told_to_user(storage.url, name):
            try:
                return read_index(storage, name, keep=False)
            except DamagedTarError as error:
                return error.what
            except CorruptObjectError as error:
                return str(error)

    with ThreadPoolExecutor(MAX_CONCURRENT_READS) as pool:
        found = dict(zip(shards.names, pool.map(current, shards.names), strict=True))
        missing = [name for name, index in found.items() if index is None]
        largest = max(pool.map(size, missing), default=0)
    with ThreadPoolExecutor(num_at_a_time(largest)) as pool:
        found |= zip(missing, pool.map(made, missing), strict=True)
    places: list[tuple[str, pa.Table]] = []
    problems: list[str] = []
    for name, index in found.items():
        if isinstance(index, str):
            problems.append(index)
        else:
            places.append((name, index))
            problems += [f"{storage.url}/{name}: {key}: {what}" for key, what in index_problems(index)]
    return places, problems


def num_at_a_time(largest: int) -> int:
    """How many tars may be in memory at a time, the largest of which has so many bytes."""
    return max(1, min(MAX_CONCURRENT_READS, MAX_BYTES_AT_A_TIME // max(1, largest)))


@contextmanager
def _told_to_user(url: str, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{url}/{name}: no such shard", "check the URL") from error
    except OSError as error:
        raise UserError(f"{url}/{name}: cannot be read: {error}", "see to the storage") from error


def _with_soft_label(shard: str, index: pa.Table) -> pa.Table:
    if "soft_label" not in index.column_names:
        log.warning("%s: none of its samples has a soft_label; left out", shard)
        return index.slice(0, 0)
    has_label = pc.is_valid(index["soft_label"])
    for key in index["key"].filter(pc.invert(has_label)).to_pylist():
        log.warning("%s: %s: has no soft_label; left out", shard, key)
    return index.filter(has_label)


def _rows(index: pa.Table, shard: str, split: str, target: Target) -> pa.Table:
    count = index.num_rows
    try:
        targets = np.asarray(target(index), dtype=np.float32)
    except (KeyError, ValueError, TypeError) as error:
        broken = [f"; {key}: {what}" for key, what in index_problems(index) if what.startswith(".json")]
        what = f"{shard}: no targets: {type(error).__name__}: {error}{''.join(broken[:3])}"
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
    unlabelled = index["key"].filter(pc.is_null(index["soft_label"]))
    if len(unlabelled):
        raise ValueError(f"{unlabelled[0]} has no soft_label")
    return np.array(index["soft_label"].to_pylist(), dtype=np.float32)


def _no_target(index: pa.Table) -> np.ndarray:
    return np.zeros((index.num_rows, 0), dtype=np.float32)
