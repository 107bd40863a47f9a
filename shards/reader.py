"""The bytes of a split's pictures: from local shards in place, from a cache of whole shards, or by ranged reads.

Reading never waits for a shard to be fetched: what is not in the cache yet, or does not fit, is read as a range of its
shard, and the cache is filled meanwhile by threads of the process that reads. So a run starts, and resumes, with its
first requests, and a cache that is too small costs requests and never stops a run.
"""

import logging
import os
import resource
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pyarrow as pa

from shards.cache import BusyError, Lease, NoRoomError, RemoteShard, ShardCache
from shards.errors import UserError
from shards.storage import CorruptObjectError, ShortObjectError
from shards.view import View, ViewSplit, target_array

log = logging.getLogger(__name__)

REQUEST_BYTES = 1 << 20
"""A request takes about as long as so many bytes: 20 milliseconds at 50 MB/s."""
NUM_FETCHERS = 2
"""Threads that fetch shards, in each process that reads."""
MAX_CONCURRENT_READS = 16
_MAX_CORRUPT_READS = 3
_TRY_AGAIN_SECONDS = {BusyError: 0.2, NoRoomError: 1.0}
"""After anything else, five."""


class DamagedSampleError(Exception):
    """The bytes of a picture are not those that were indexed."""


class SampleReader:
    """Reads the pictures of a split's rows. Each process that it comes to, by fork or pickle, fetches for itself."""

    def __init__(self, view: View, split: ViewSplit, cache: ShardCache | None) -> None:
        rows = split.rows
        self.targets = target_array(rows)
        self._keys = rows["key"].cast(pa.large_string()).combine_chunks()  # of 100 million, more than 2 GiB
        self._offsets = rows["image_offset"].to_numpy()
        self._lengths = rows["image_length"].to_numpy()
        self._crc32 = rows["image_crc32"].to_numpy()
        self._ends = np.cumsum(split.shard_sizes)
        self._shards = [
            RemoteShard(view.datasets[shard["dataset"]], shard["shard"], shard["bytes"], shard["sha256"])
            for shard in split.shards.to_pylist()
        ]
        starts = np.concatenate([[0], self._ends[:-1]])
        kept = np.add.reduceat(self._lengths, starts)
        self._is_cached = [
            cache is not None and not shard.storage.is_local and is_fetched_whole(count, num_bytes, shard.bytes)
            for shard, count, num_bytes in zip(self._shards, split.shard_sizes.tolist(), kept.tolist(), strict=True)
        ]
        self._cache = cache
        self._fetcher: _Fetcher | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    @property
    def uses_cache(self) -> bool:
        """Whether any shard is to be fetched whole: only then is `expect` of use."""
        return any(self._is_cached)

    @property
    def num_shards(self) -> int:
        """How many shards the split has samples in."""
        return len(self._shards)

    def key(self, row: int) -> str:
        """The key of a row's sample."""
        return self._keys[row].as_py()

    def shard_of(self, row: int) -> int:
        """Which of the split's shards a row lies in."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def shard_name(self, row: int) -> str:
        """The name of the tar that a row lies in."""
        return self._shards[self.shard_of(row)].name

    def expect(self, shards: Iterable[int]) -> None:
        """Say which of the split's shards are read now and next, the most urgent first; others may be evicted."""
        fetched = [shard for shard in shards if self._is_cached[shard]]
        self._here()
        if self._fetcher:
            self._fetcher.expect(fetched)

    def read(self, rows: Sequence[int]) -> list[bytes | DamagedSampleError]:
        """The encoded pictures of some rows; the error in place of one that is damaged.

        Raises UserError for a shard that is not there or cannot be read.
        """
        self._here()
        contents = [self._read_cached(row) for row in rows]
        missing = [place for place, content in enumerate(contents) if content is None]
        # Local reads are not worth a change of threads; those from afar are waited for, side by side.
        read = self._pool.map if self._pool else map
        for place, content in zip(missing, read(self._read_storage, [rows[place] for place in missing]), strict=True):
            contents[place] = content
        return cast(list[bytes | DamagedSampleError], contents)

    def close(self) -> None:
        """End the threads and let go of the cached shards. Reading again begins anew."""
        if self._pid == os.getpid():
            if self._fetcher:
                self._fetcher.close()
            if self._pool:
                self._pool.shutdown()
        self._fetcher = self._pool = None
        self._pid = 0

    def __getstate__(self) -> dict:
        return vars(self) | {"_fetcher": None, "_pool": None, "_pid": 0}

    def _here(self) -> None:
        """See to it that this process has threads of its own: those of its parent are not here after a fork."""
        if self._pid == os.getpid():
            return
        if self._fetcher:
            self._fetcher.abandon()
        self._pid = os.getpid()
        self._fetcher = _Fetcher(self._cache, self._shards) if self._cache and self.uses_cache else None
        is_remote = any(not shard.storage.is_local for shard in self._shards)
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT_READS, "read") if is_remote else None

    def _read_cached(self, row: int) -> bytes | DamagedSampleError | None:
        """A picture from the cache; None where it is not there, or the cache's disk cannot give it."""
        shard = self.shard_of(row)
        if not (self._fetcher and self._is_cached[shard]):
            return None
        try:
            lease = self._fetcher.lease(shard)
            if lease is None:
                return None
            content = lease.read_range(int(self._offsets[row]), int(self._lengths[row]))
            if zlib.crc32(content) == self._crc32[row]:
                return content
        except ShortObjectError:
            pass
        except OSError:
            return None
        stored = self._read_storage(row)
        # Where the storage gives no better bytes, the view is of others, and a new copy would be no better either.
        if isinstance(stored, bytes):
            self._fetcher.drop(shard)
        return stored

    def _read_storage(self, row: int) -> bytes | DamagedSampleError:
        shard = self._shards[self.shard_of(row)]
        try:
            return self._read_range(shard, int(self._offsets[row]), int(self._lengths[row]), int(self._crc32[row]))
        except ShortObjectError as error:
            return DamagedSampleError(str(error))
        except DamagedSampleError as error:
            return error
        except FileNotFoundError:
            raise UserError(
                f"{shard.url}: this shard of the view is not there",
                "curate a new view, if posts were scrubbed from the dataset since; else restore it",
            ) from None
        except OSError as error:
            raise UserError(
                f"{shard.url}: {self.key(row)}: cannot be read: {error}",
                "see to the storage; the same command goes on from the last checkpoint",
            ) from error

    def _read_range(self, shard: RemoteShard, offset: int, length: int, crc32: int) -> bytes:
        for _ in range(1 if shard.storage.is_local else _MAX_CORRUPT_READS):
            content = shard.storage.read_range(shard.name, offset, length)
            # No sha256 covers a part of a shard; disks and networks change bytes, seldom and without a word.
            if zlib.crc32(content) == crc32:
                return content
        raise DamagedSampleError("its bytes are not those that were indexed")


def is_fetched_whole(num_kept: int, kept_bytes: int, shard_bytes: int) -> bool:
    """Whether fetching a shard whole takes no longer than a request for each picture that a split keeps of it."""
    return shard_bytes + REQUEST_BYTES <= kept_bytes + num_kept * REQUEST_BYTES


class _Fetcher:
    """Threads that fetch what is expected, in its order, and hold leases on what is expected and there."""

    def __init__(self, cache: ShardCache, shards: Sequence[RemoteShard]) -> None:
        self._cache, self._shards = cache, shards
        self._leases: dict[int, Lease] = {}
        self._expected: list[int] = []
        self._not_before: dict[int, float] = {}
        """When a shard that could not be fetched is tried again; one that is being fetched, never."""
        self._corrupt: set[int] = set()
        self._has_warned = False
        self._ended = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True) for number in range(NUM_FETCHERS)
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, shards: list[int]) -> None:
        """What to fetch, the most urgent first. Leases on anything else end."""
        _allow_open_files(len(shards))
        with self._changed:
            self._expected = shards
            for shard in self._leases.keys() - set(shards):
                self._leases.pop(shard).close()
            self._changed.notify_all()

    def lease(self, shard: int) -> Lease | None:
        """The lease on a shard that is in the cache. Raises OSError where the cache cannot be read."""
        with self._changed:
            if shard not in self._leases:
                # Another process may have fetched it.
                lease = self._cache.lease(self._shards[shard])
                if lease:
                    self._leases[shard] = lease
            return self._leases.get(shard)

    def drop(self, shard: int) -> None:
        """Let a shard's file in the cache, which has gone bad, be fetched anew."""
        log.warning("%s: its copy of %s has gone bad, and is fetched anew", self._cache.folder, self._shards[shard].url)
        with self._changed:
            lease = self._leases.pop(shard, None)
            if lease:
                self._cache.drop(self._shards[shard], lease)
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, each after the shard that it is fetching, and all leases."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for lease in self._leases.values():
            lease.close()
        self._leases = {}

    def abandon(self) -> None:
        """In a process that was forked: leave all leases to the parent."""
        for lease in self._leases.values():
            lease.abandon()
        self._leases = {}

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (shard := self._next()) is None:
                    self._changed.wait(min(_TRY_AGAIN_SECONDS.values()))
                if self._ended or shard is None:
                    return
                self._not_before[shard] = float("inf")
            self._fetch(shard)

    def _next(self) -> int | None:
        now = time.monotonic()
        for shard in self._expected:
            if shard not in self._leases and shard not in self._corrupt and self._not_before.get(shard, 0) <= now:
                return shard
        return None

    def _fetch(self, shard: int) -> None:
        lease: Lease | None = None
        wait = 0.0
        try:
            lease = self._cache.fetch(self._shards[shard])
        except CorruptObjectError as error:
            # Which of its pictures are damaged, each one's own checksum says: the same whether or not it was fetched.
            self._corrupt.add(shard)
            log.warning("%s; its pictures are read one by one", error)
        except Exception as error:  # noqa: BLE001  a thread that ended would end all fetching, without a word
            # Nothing is lost: the reader asks the storage itself, and says so if that fails too.
            wait = next((seconds for kind, seconds in _TRY_AGAIN_SECONDS.items() if isinstance(error, kind)), 5.0)
            self._warn_once(error)
        with self._changed:
            self._not_before[shard] = time.monotonic() + wait
            if lease and shard in self._expected and shard not in self._leases and not self._ended:
                self._leases[shard] = lease
            elif lease:
                lease.close()

    def _warn_once(self, error: Exception) -> None:
        if isinstance(error, BusyError) or self._has_warned:
            return
        self._has_warned = True
        if isinstance(error, NoRoomError):
            log.warning(
                "%s: %.1f GiB do not hold all shards that are read at a time; the others' pictures are read one by "
                "one (raise stream.max_cache_gib, or lower stream.shards_per_block)",
                self._cache.folder,
                self._cache.max_bytes / 2**30,
            )
        else:
            log.warning(
                "%s: a shard could not be fetched; its pictures are read one by one: %s", self._cache.folder, error
            )


def _allow_open_files(count: int) -> None:
    """Raise this process's soft limit of open files, as far as it may, where so many leases come near it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
