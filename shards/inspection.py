"""What lies at a URL: listing, checking and indexing its shards, several at a time.

A URL is a folder or prefix, all of whose tars are meant, or a pattern of tars as webdataset takes it:
`s3://bucket/data/{000000..000099}.tar`. Any WebDataset will do, whoever made it.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from braceexpand import braceexpand

from shards.dataset import read_dataset, shard_names
from shards.errors import UserError
from shards.index import DamagedTarError, index_metadata, index_problems, read_index, renew_index
from shards.storage import Storage, open_storage
from shards.verify import Problem, ShardReport, verify_shard

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The tars that a URL means."""

    storage: Storage
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """What the index says of a shard."""

    name: str
    samples: int
    bytes: int
    problems: list[Problem]
    """What is broken in its samples, but for pictures that do not decode."""


def find_shards(url: str) -> Shards:
    """The tars at a URL, in the order of their names or of the pattern. Raises UserError if there are none."""
    if not url.endswith(".tar"):
        storage = open_storage(url)
        names = shard_names(storage)
        if not names:
            raise UserError(f"{url}: no .tar lies there", "check the URL")
        return Shards(storage=storage, names=names)
    try:
        places = [one.rpartition("/") for one in braceexpand(url)]
    except ValueError as error:
        raise UserError(f"{url}: {error}", "write a pattern such as {000000..000099}.tar") from error
    folders = {folder for folder, _, _ in places}
    if len(folders) > 1:
        raise UserError(
            f"{url}: means tars in {len(folders)} folders",
            "give one folder at a time, and braces in the tars' names alone, such as {000000..000099}.tar",
        )
    return Shards(storage=open_storage(folders.pop() or "."), names=[name for _, _, name in places])


def measure_shards(shards: Shards, num_workers: int, *, keep_indexes: bool) -> Iterator[ShardSize | Problem]:
    """Say of each shard, in order, what its index says; one that is missing or stale is made.

    Those that are to be kept are compared with their tars, which are read whole for it. Of a tar that is not there or
    cannot be read, say that.
    """
    tasks = [(shards.storage, name) for name in shards.names]
    yield from _in_parallel(partial(_measure, keep_index=keep_indexes), tasks, num_workers)


def verify_shards(shards: Shards, num_workers: int) -> Iterator[ShardReport]:
    """Read every member of every shard once and say, in order, what is broken."""
    known = _known_sha256(shards.storage)
    tasks = [(shards.storage, name, known.get(name)) for name in shards.names]
    yield from _in_parallel(_verify_one, tasks, num_workers)


def _known_sha256(storage: Storage) -> dict[str, str]:
    """What `dataset.json` says of the shards; nothing where there is none, as in a foreign WebDataset."""
    if not storage.exists("dataset.json"):
        return {}
    return {shard["name"]: shard["sha256"] for shard in read_dataset(storage)["shards"]}


def _measure(task: tuple[Storage, str], keep_index: bool) -> ShardSize | Problem:
    storage, name = task
    try:
        index = renew_index(storage, name) if keep_index else read_index(storage, name, keep=False)
    except DamagedTarError as error:
        return Problem(shard=name, key=None, what=error.damage)
    except OSError as error:
        return Problem(shard=name, key=None, what=_unreadable(error))
    return ShardSize(
        name=name,
        samples=index.num_rows,
        bytes=int(index_metadata(index)["tar_bytes"]),
        problems=[Problem(shard=name, key=key, what=what) for key, what in index_problems(index)],
    )


def _verify_one(task: tuple[Storage, str, str | None]) -> ShardReport:
    storage, name, sha256 = task
    try:
        return verify_shard(storage, name, sha256)
    except OSError as error:
        problems = [Problem(shard=name, key=None, what=_unreadable(error))]
    return ShardReport(name=name, bytes=0, samples=0, problems=problems)


def _unreadable(error: OSError) -> str:
    return "no such shard" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"


def _in_parallel(work: Callable[..., T], tasks: Sequence[object], num_workers: int) -> Iterator[T]:
    """The results in the order of the tasks; `num_workers` 0 takes a process a core."""
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(tasks))
    if num_workers == 1:
        yield from map(work, tasks)
        return
    # Spawned, not forked: the caller may have threads and connections open.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks)
