"""The node's cache of shards: never over its bound, whole or absent, and nobody's work is lost to a killed process."""

import errno
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faraway import Faraway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import cache as cache_module
from shards.cache import MAX_CORRUPT_FETCHES, BusyError, NoRoomError, RemoteShard, ShardCache, default_cache_folder
from shards.errors import UserError
from shards.storage import CorruptObjectError, LocalStorage

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def storage(tmp_path: Path) -> Faraway:
    return Faraway(tmp_path / "dataset")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """Room for ten shards of a thousand bytes."""
    return ShardCache(tmp_path / "cache", 10_000)


def put(storage: LocalStorage, name: str, size: int = 1000) -> RemoteShard:
    content = random.Random(name).randbytes(size)
    storage.replace(name, content)
    return RemoteShard(storage, name, size, hashlib.sha256(content).hexdigest())


def content_of(shard: RemoteShard) -> bytes:
    return shard.storage.read(shard.name)


def test_a_fetched_shard_is_read_from_the_cache_and_fetched_once(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar")
    assert cache.lease(shard) is None
    for _ in range(3):
        lease = cache.fetch(shard)
        assert lease.read_range(0, 1000) == content_of(shard)
        assert lease.read_range(17, 5) == content_of(shard)[17:22]
        lease.close()
    lease = cache.lease(shard)
    assert lease is not None
    assert lease.read_range(999, 1) == content_of(shard)[999:]
    lease.close()
    lease.close()  # a second time is no harm
    assert storage.reads == {"a.tar": 1}
    assert cache.num_bytes() == 1000


def test_equal_shards_of_two_datasets_are_one(storage: Faraway, cache: ShardCache, tmp_path: Path) -> None:
    cache.fetch(put(storage, "a.tar")).close()
    other = Faraway(tmp_path / "copy")
    cache.fetch(put(other, "a.tar")).close()
    assert not other.reads


def test_the_least_recently_used_is_evicted_for_a_new_one(storage: Faraway, cache: ShardCache) -> None:
    shards = [put(storage, f"{number}.tar") for number in range(11)]
    for shard in shards[:10]:
        cache.fetch(shard).close()
        time.sleep(0.002)
    first = cache.lease(shards[0])  # used again
    assert first is not None
    first.close()
    cache.fetch(shards[10]).close()
    assert cache.num_bytes() == 10_000
    there = [number for number, shard in enumerate(shards) if is_there(cache, shard)]
    assert there == [0, *range(2, 11)]


def is_there(cache: ShardCache, shard: RemoteShard) -> bool:
    lease = cache.lease(shard)
    if lease:
        lease.close()
    return lease is not None


def test_what_is_in_use_is_never_evicted(storage: Faraway, cache: ShardCache) -> None:
    leases = [cache.fetch(put(storage, f"{number}.tar")) for number in range(10)]
    late = put(storage, "late.tar")
    with pytest.raises(NoRoomError):
        cache.fetch(late)
    assert cache.num_bytes() == 10_000
    assert "late.tar" not in storage.reads  # nothing is fetched for which there is no room
    leases[4].close()
    cache.fetch(late)
    assert [lease.read_range(0, 3) for lease in leases[:4]] == [
        content_of(put(storage, f"{number}.tar"))[:3] for number in range(4)
    ]
    assert not is_there(cache, put(storage, "4.tar"))


@pytest.mark.parametrize("size", [9_001, 10_001])
def test_for_a_shard_that_will_not_fit_nothing_is_evicted(storage: Faraway, cache: ShardCache, size: int) -> None:
    lease = cache.fetch(put(storage, "used.tar"))
    cache.fetch(put(storage, "unused.tar")).close()
    with pytest.raises(NoRoomError):
        cache.fetch(put(storage, "huge.tar", size))
    assert is_there(cache, put(storage, "unused.tar"))
    assert list(cache.folder.glob("*.part")) == []
    lease.close()


def test_a_disk_that_is_nearly_full_has_no_room(
    storage: Faraway, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(NoRoomError):
        cache.fetch(put(storage, "a.tar"))


@given(
    steps=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=40),
    sizes=st.lists(st.integers(1, 4000), min_size=8, max_size=8),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_is_fetched_and_held_the_bound_holds(
    steps: list[tuple[int, bool]], sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bound")
    storage, cache = Faraway(folder / "dataset"), ShardCache(folder / "cache", 6000)
    shards = [put(storage, f"{number}.tar", size) for number, size in enumerate(sizes)]
    storage.on_chunk = lambda: _assert_bounded(cache)
    held: dict = {}
    for number, keep in steps:
        in_use = sum(sizes[other] for other in held)
        try:
            lease = cache.fetch(shards[number])
        except NoRoomError:
            assert in_use + sizes[number] > 6000
        else:
            assert number in held or in_use + sizes[number] <= 6000
            assert lease.read_range(0, sizes[number]) == content_of(shards[number])
            (held.setdefault(number, []).append if keep else type(lease).close)(lease)
        _assert_bounded(cache)
        if not keep:
            for lease in held.pop(number, []):
                lease.close()
    for leases in held.values():
        for lease in leases:
            lease.close()


def _assert_bounded(cache: ShardCache) -> None:
    assert cache.num_bytes() <= cache.max_bytes


def test_a_shard_with_other_bytes_than_expected_is_an_error_that_names_it_and_is_not_kept(
    storage: Faraway, cache: ShardCache
) -> None:
    shard = put(storage, "a.tar")
    storage.replace("a.tar", content_of(shard)[:-1] + b"x")
    with pytest.raises(CorruptObjectError, match=r"dataset/a\.tar: its sha256 is not the one"):
        cache.fetch(shard)
    assert storage.reads == {"a.tar": MAX_CORRUPT_FETCHES}
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + bytes(5000)])
def test_a_shard_of_another_size_is_corrupt_and_takes_no_more_than_its_room(
    storage: Faraway, cache: ShardCache, change: Callable[[bytes], bytes]
) -> None:
    shard = put(storage, "a.tar")
    storage.replace("a.tar", change(content_of(shard)))
    with pytest.raises(CorruptObjectError, match=r"a\.tar: "):
        cache.fetch(shard)
    assert cache.num_bytes() == 0


def test_bytes_that_were_damaged_on_the_way_are_fetched_again(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar")
    good = content_of(shard)
    storage.replace("a.tar", b"x" + good[1:])

    def mend() -> None:
        if storage.reads["a.tar"] == 2:
            storage.replace("a.tar", good)

    storage.on_chunk = mend
    # Its second read began on the damaged file, the third is whole.
    assert cache.fetch(shard).read_range(0, 1000) == good
    assert storage.reads["a.tar"] == 3


def test_an_object_that_is_not_there_is_no_file_in_the_cache(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar")
    storage.delete("a.tar")
    with pytest.raises(FileNotFoundError):
        cache.fetch(shard)
    assert cache.num_bytes() == 0


def test_while_one_fetches_others_are_told_and_take_what_it_brought(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar")
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(20)

    storage.on_chunk = wait
    thread = threading.Thread(target=lambda: cache.fetch(shard).close())
    thread.start()
    assert begun.wait(20)
    other = ShardCache(cache.folder, cache.max_bytes)
    with pytest.raises(BusyError):
        other.fetch(shard)
    assert other.lease(shard) is None  # half of it is nothing
    go_on.set()
    thread.join()
    assert other.fetch(shard).read_range(0, 1000) == content_of(shard)
    assert storage.reads == {"a.tar": 1}


DYING_FETCH = """
import os, signal, sys
from shards.cache import RemoteShard, ShardCache
from shards.storage import LocalStorage

class Dying(LocalStorage):
    def chunks(self, name):
        yield self.read(name)[:500]
        os.kill(os.getpid(), signal.SIGKILL)

dataset, folder, size, sha256 = sys.argv[1:]
ShardCache(folder, 10_000).fetch(RemoteShard(Dying(dataset), "a.tar", int(size), sha256))
"""


def test_what_a_killed_process_left_is_no_shard_and_makes_room_first(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar", 8000)
    command = [sys.executable, "-c", DYING_FETCH, str(storage.folder), str(cache.folder), "8000", shard.sha256]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert cache.num_bytes() == 8000
    assert cache.lease(shard) is None
    others = [put(storage, f"{number}.tar") for number in range(2)]
    for other in others:
        cache.fetch(other).close()
    cache.fetch(put(storage, "b.tar", 8000)).close()
    assert all(is_there(cache, other) for other in others)
    assert list(cache.folder.glob("*.part")) == []


def test_the_same_shard_is_fetched_anew_after_a_kill(storage: Faraway, cache: ShardCache) -> None:
    shard = put(storage, "a.tar", 8000)
    command = [sys.executable, "-c", DYING_FETCH, str(storage.folder), str(cache.folder), "8000", shard.sha256]
    subprocess.run(command, cwd=ROOT)
    assert cache.fetch(shard).read_range(0, 8000) == content_of(shard)
    assert cache.num_bytes() == 8000


def _fetch_at_random(folder: Path, shards: list[RemoteShard], seed: int, seconds: float) -> None:
    cache = ShardCache(folder, 10_000)
    generator = random.Random(seed)
    held = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shard = generator.choice(shards)
        try:
            lease = cache.fetch(shard)
        except (BusyError, NoRoomError):
            pass
        else:
            assert lease.read_range(0, shard.bytes) == content_of(shard)
            held.append(lease)
        while len(held) > 2 or (held and generator.random() < 0.5):
            held.pop(generator.randrange(len(held))).close()
        if cache.num_bytes() > cache.max_bytes:
            os._exit(3)


def test_many_processes_share_it_within_its_bound_though_some_are_killed(storage: Faraway, cache: ShardCache) -> None:
    shards = [put(storage, f"{number}.tar", 500 + 211 * number) for number in range(12)]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_fetch_at_random, args=(cache.folder, shards, seed, 3 if seed else 60))
        for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    time.sleep(1)
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0, 0]
    # Nothing is locked any more: all of the cache can be had.
    cache.fetch(put(storage, "all.tar", 10_000)).close()
    assert cache.num_bytes() == 10_000


@pytest.mark.parametrize("sha256", ["", "../../escaped", "/tmp/escaped", "A" * 64, "0" * 63, "0" * 64 + "/.."])
def test_a_name_that_would_lead_out_of_the_folder_is_a_users_error(
    storage: Faraway, cache: ShardCache, sha256: str, tmp_path: Path
) -> None:
    shard = RemoteShard(storage, put(storage, "a.tar").name, 1000, sha256)
    before = sorted(tmp_path.rglob("*"))
    for use in (cache.lease, cache.fetch):
        with pytest.raises(UserError, match="is no sha256"):
            use(shard)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_a_cache_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache", Path("/proc/cache")):
        with pytest.raises(UserError) as caught:
            ShardCache(folder, 1)
        assert str(folder) in caught.value.what


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_a_users_error(tmp_path: Path) -> None:
    os.chown(tmp_path, 4321, 4321)
    with pytest.raises(UserError, match="belongs to another user"):
        ShardCache(tmp_path, 1)
    os.chown(tmp_path, 0, 0)


def test_the_default_folder_is_the_users_own_below_tmpdir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert default_cache_folder() == str(tmp_path / f"xmodal-shards-{os.getuid()}")
    cache = ShardCache(default_cache_folder(), 1)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_files_of_others_in_the_folder_are_neither_counted_nor_evicted(storage: Faraway, cache: ShardCache) -> None:
    others = [cache.folder / name for name in ("precious.tar", "000000.tar", "a.part", f"{'0' * 63}.tar", "notes.txt")]
    for path in others:
        path.write_bytes(bytes(9000))
    assert cache.num_bytes() == 0
    for number in range(12):
        cache.fetch(put(storage, f"{number}.tar")).close()
    assert cache.num_bytes() == 10_000
    assert all(path.stat().st_size == 9000 for path in others)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link that belongs to another user")
def test_a_link_of_another_user_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mine")
    ShardCache(link, 1)
    os.lchown(link, 4321, 4321)
    with pytest.raises(UserError, match="belongs to another user"):
        ShardCache(link, 1)


def test_a_disk_without_room_has_no_room(storage: Faraway, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(NoRoomError):
        cache.fetch(put(storage, "a.tar"))
    assert cache.num_bytes() == 0


def test_a_forked_process_keeps_nothing_locked(storage: Faraway, cache: ShardCache) -> None:
    lease = cache.fetch(put(storage, "a.tar", 9000))
    with cache._locked():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
    lease.close()
    try:
        cache.fetch(put(storage, "b.tar", 9000)).close()  # the child has both locks' files open
    finally:
        child.kill()
        child.join()
