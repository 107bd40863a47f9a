"""Storage on S3 over HTTP: against two real servers, and through a proxy that breaks answers."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_proxy
import pytest
import s3_servers
from botocore.config import Config
from fault_proxy import Fault, FaultProxy
from s3_servers import BUCKET

import shards.s3_storage
from shards.dataset import finish, read_dataset
from shards.errors import UserError
from shards.index import read_index
from shards.s3_storage import S3Storage
from shards.storage import TEMPORARY_PREFIX, CorruptObjectError, open_storage
from shards.writer import Sample, write_shard

CONTENT = bytes(range(256)) * 20_000
"""5 MB: several chunks."""


@pytest.fixture(scope="session", params=["moto", "seaweedfs"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    with getattr(s3_servers, request.param)() as running:
        yield running


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point the environment at an endpoint."""

    def set_environment(endpoint: str) -> None:
        for name, value in s3_servers.environment(endpoint).items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '/').replace(']', '')}"


@pytest.fixture
def storage(endpoint: str, reach: Callable[[str], None], url: str) -> S3Storage:
    reach(endpoint)
    return S3Storage(url)


@pytest.fixture
def proxy(endpoint: str, reach: Callable[[str], None]) -> Iterator[FaultProxy]:
    with fault_proxy.proxying(endpoint) as running:
        reach(running.endpoint)
        yield running


@pytest.fixture
def behind_proxy(proxy: FaultProxy, url: str) -> S3Storage:
    """A storage whose requests go through the proxy."""
    return S3Storage(url)


def commit(storage: S3Storage, name: str, content: bytes) -> bool:
    temporary = storage.new_temporary(name)
    temporary.write_bytes(content)
    won = storage.commit(temporary, name)
    assert not temporary.exists()
    return won


def bodies_only(fault_of: Callable[[int], Fault | None], name: str = "a.tar") -> fault_proxy.Plan:
    """A plan for the GETs of an object, by their number."""
    return lambda method, path, number: fault_of(number) if method == "GET" and path.endswith(name) else None


def test_what_is_committed_is_there_whole_and_a_second_commit_has_lost(storage: S3Storage) -> None:
    assert commit(storage, "a.tar", CONTENT)
    assert not commit(storage, "a.tar", b"second")
    assert storage.read("a.tar") == CONTENT
    assert storage.size("a.tar") == len(CONTENT)
    assert storage.exists("a.tar")
    assert not storage.exists("b.tar")


def test_of_many_threads_exactly_one_wins_each_name(storage: S3Storage) -> None:
    names = [f"{number}.tar" for number in range(6)]
    barrier = threading.Barrier(5)
    wins: dict[str, list[bytes]] = {name: [] for name in names}

    def race(content: bytes) -> None:
        for name in names:
            barrier.wait()
            if commit(storage, name, content):
                wins[name].append(content)

    threads = [threading.Thread(target=race, args=(b"%d" % number * 1000,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert wins[name] == [storage.read(name)]


def test_a_range_is_the_slice_of_the_whole(storage: S3Storage) -> None:
    storage.replace("a.tar", CONTENT)
    assert storage.read_range("a.tar", 0, len(CONTENT)) == CONTENT
    assert storage.read_range("a.tar", 3_000_001, 77) == CONTENT[3_000_001:3_000_078]
    assert storage.read_range("a.tar", 17, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (5000, 1)])
def test_a_range_past_the_end_is_an_error_that_names_the_object(storage: S3Storage, offset: int, length: int) -> None:
    storage.replace("a.tar", bytes(100))
    with pytest.raises(OSError, match=r"a\.tar: ends before"):
        storage.read_range("a.tar", offset, length)


def test_small_and_empty_objects_are_replaced_and_deleted(storage: S3Storage) -> None:
    for content in (b"one", b"", b"three"):
        storage.replace("a.json", content)
        assert storage.read("a.json") == content
    storage.delete("a.json")
    storage.delete("a.json")
    assert not storage.exists("a.json")


def test_a_file_of_several_parts_is_put_whole_in_the_place_of_another(storage: S3Storage, tmp_path: Path) -> None:
    path = tmp_path / "large"
    for content in (CONTENT * 8, b"", CONTENT):
        path.write_bytes(content)
        storage.put_file("a.safetensors", path)
        assert path.read_bytes() == storage.read("a.safetensors") == content
    with pytest.raises(FileNotFoundError):
        storage.put_file("a.safetensors", tmp_path / "none")


def test_what_is_not_there_is_a_file_not_found_error(storage: S3Storage) -> None:
    for look in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError, match=r"/a\.tar"):
            look("a.tar")


def test_names_are_sorted_and_are_those_of_the_prefix_alone(storage: S3Storage, url: str) -> None:
    for name in ("b.tar", "a.tar", "a.json", ".hidden.tar", "a-b.tar"):
        storage.replace(name, b"x")
    S3Storage(f"{url}/deeper").replace("c.tar", b"x")
    S3Storage(f"{url}-beside").replace("d.tar", b"x")
    assert storage.names(".tar") == ["a-b.tar", "a.tar", "b.tar"]
    assert storage.names() == ["a-b.tar", "a.json", "a.tar", "b.tar"]


def test_more_names_than_a_page_holds_are_all_there(storage: S3Storage) -> None:
    names = [f"{number:04d}" for number in range(1005)]
    for name in names:
        storage.client.put_object(Bucket=BUCKET, Key=f"{storage.prefix}/{name}", Body=b"")
    assert storage.names() == names


def test_leftovers_of_dead_writers_and_of_losers_are_dropped(storage: S3Storage) -> None:
    for name in ("000001.failures-aa", "000002.failures-bb"):
        storage.replace(f"{TEMPORARY_PREFIX}{name}", b"x")
    assert storage.discard_leftovers(3600, {"000001.failures"}) == 1
    assert storage.discard_leftovers(3600) == 0
    assert storage.discard_leftovers(-60) == 1


def test_a_prefix_where_nothing_lies_is_a_users_error_unless_it_is_to_be_made(storage: S3Storage) -> None:
    with pytest.raises(UserError, match="nothing lies there"):
        open_storage(storage.url)
    assert open_storage(f"{storage.url}/", create=True).url == storage.url


def test_a_bucket_that_is_not_there_is_a_users_error(reach: Callable[[str], None]) -> None:
    with s3_servers.moto() as endpoint:  # SeaweedFS makes buckets as they are needed
        reach(endpoint)
        for use in (lambda missing: missing.names(), lambda missing: missing.replace("a", b"x")):
            with pytest.raises(UserError, match="no such bucket"):
                use(S3Storage("s3://no-such-bucket/prefix"))
    with pytest.raises(UserError, match="no bucket"):
        open_storage("s3://")


def test_refused_credentials_are_a_users_error(reach: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_servers.seaweedfs() as endpoint:
        reach(endpoint)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UserError, match="access refused") as caught:
            S3Storage(f"s3://{BUCKET}/x").replace("a", b"x")
        assert "credentials" in caught.value.remedy
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match="credentials"):
        S3Storage(f"s3://{BUCKET}/x").read("a")


def test_a_body_that_breaks_off_again_and_again_is_read_on_where_it_broke(
    behind_proxy: S3Storage, proxy: FaultProxy
) -> None:
    behind_proxy.replace("a.tar", CONTENT)
    # Every body breaks off: who begins again gets no further than the first did, until it is told that there is none.
    proxy.plan = bodies_only(lambda number: Fault(cut_after=700_000) if number < 20 else Fault(status=404))
    assert behind_proxy.read("a.tar") == CONTENT
    # 700,000 bytes are 10 chunks, of 65,536 bytes, and a part of one, which is lost: 5,120,000 bytes take 8 bodies.
    assert proxy.num_faults == 8
    proxy.requests.clear()
    proxy.plan = bodies_only(lambda number: Fault(cut_after=200_000) if number < 20 else Fault(status=404))
    assert behind_proxy.read_range("a.tar", 5_000, 900_000) == CONTENT[5_000:905_000]
    assert proxy.num_faults == 8 + 5


def test_a_whole_object_is_in_memory_once(storage: S3Storage) -> None:
    content = os.urandom(32_000_000)
    storage.replace("a.tar", content)
    tracemalloc.start()
    try:
        assert storage.read("a.tar") == content
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(content)
    finally:
        tracemalloc.stop()


def test_a_body_that_stalls_is_read_on(
    behind_proxy: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.s3_storage, "_REQUESTS", shards.s3_storage._REQUESTS.merge(Config(read_timeout=1)))
    behind_proxy.replace("a.tar", CONTENT)
    proxy.plan = bodies_only(lambda number: Fault(stall_after=100_000) if number == 0 else None)
    assert behind_proxy.read("a.tar") == CONTENT


def test_a_server_that_is_busy_is_asked_again(behind_proxy: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = lambda method, path, number: Fault(status=503) if number == 0 else None
    assert commit(behind_proxy, "a.tar", CONTENT)
    assert behind_proxy.read("a.tar") == CONTENT
    assert behind_proxy.names() == ["a.tar"]
    assert proxy.num_faults >= 3


def test_a_flipped_bit_is_an_error_that_names_the_object(behind_proxy: S3Storage, proxy: FaultProxy) -> None:
    behind_proxy.replace("a.tar", CONTENT)
    proxy.plan = bodies_only(lambda number: Fault(flip_at=4_000_000))
    with pytest.raises(CorruptObjectError, match=r"a\.tar: its"):
        behind_proxy.read("a.tar")
    # Read in two pieces, no checksum of the server's covers the whole: ours does.
    proxy.requests.clear()
    proxy.plan = bodies_only(lambda number: Fault(cut_after=1_000_000) if number == 0 else Fault(flip_at=5))
    with pytest.raises(CorruptObjectError, match=r"a\.tar: its"):
        behind_proxy.read("a.tar")


def test_a_commit_whose_answer_is_lost_has_won_all_the_same(behind_proxy: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = lambda method, path, number: Fault(cut_after=0) if method == "PUT" and number == 0 else None
    assert commit(behind_proxy, "a.tar", CONTENT)
    assert proxy.num_faults == 1
    proxy.requests.clear()
    assert not commit(behind_proxy, "a.tar", CONTENT)
    assert behind_proxy.read("a.tar") == CONTENT


def test_a_body_that_never_gets_further_is_given_up(behind_proxy: S3Storage, proxy: FaultProxy) -> None:
    behind_proxy.replace("a.tar", CONTENT)
    proxy.plan = bodies_only(lambda number: Fault(cut_after=0 if number else 1000))
    with pytest.raises((OSError, UserError), match=r"a\.tar: (cannot be read beyond byte|no answer)"):
        behind_proxy.read("a.tar")


def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(behind_proxy: S3Storage, proxy: FaultProxy) -> None:
    behind_proxy.replace("a.tar", CONTENT)

    def replaced_after_the_first_piece(number: int) -> Fault | None:
        if number == 1:
            S3Storage(behind_proxy.url).replace("a.tar", CONTENT[::-1])
        return Fault(cut_after=1_000_000) if number == 0 else None

    proxy.plan = bodies_only(replaced_after_the_first_piece)
    with pytest.raises(OSError, match=r"a\.tar: was replaced while it was read"):
        behind_proxy.read("a.tar")


def test_an_endpoint_where_nothing_listens_is_a_users_error(
    reach: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reach("http://127.0.0.1:9")
    retries = {"mode": "standard", "total_max_attempts": 2}
    monkeypatch.setattr(shards.s3_storage, "_REQUESTS", shards.s3_storage._REQUESTS.merge(Config(retries=retries)))
    with pytest.raises(UserError, match="no answer"):
        open_storage(f"s3://{BUCKET}/x")


def read_in_child(storage: S3Storage, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(storage.read("a.json"))


def test_a_storage_may_be_used_after_a_fork_and_may_be_pickled(storage: S3Storage) -> None:
    storage.replace("a.json", b"content")
    assert pickle.loads(pickle.dumps(storage)).read("a.json") == b"content"
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    children = [context.Process(target=read_in_child, args=(storage, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=30) for _ in children] == [b"content"] * 3
    for child in children:
        child.join()


def samples() -> Iterator[Sample]:
    for number in range(3):
        yield Sample(key=f"p{number}-0", image=bytes([number]) * 1000, image_extension="png", fields={"number": number})


def test_a_shard_is_the_same_bytes_as_in_a_folder_and_is_indexed(storage: S3Storage, tmp_path: Path) -> None:
    local = open_storage(tmp_path / "local", create=True)
    for place in (storage, local):
        assert write_shard(place, "000000", samples(), [{"reason": "timeout"}]).won
        assert not write_shard(place, "000000", samples()).won
        finish(place, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    assert storage.names() == local.names()
    for name in local.names():
        assert storage.read(name) == local.read(name)
    assert read_index(storage, "000000.tar")["number"].to_pylist() == [0, 1, 2]
    assert read_dataset(open_storage(storage.url))["shards"][0]["samples"] == 3
    assert not [name for name, _ in storage._listing(TEMPORARY_PREFIX)]


DYING_COMMIT = """
import os, signal, sys
from shards.s3_storage import S3Storage
storage = S3Storage(sys.argv[1])
temporary = storage.new_temporary("a.tar")
temporary.write_bytes(bytes(64_000_000))
storage.client.meta.events.register("request-created.s3.PutObject", lambda **_: os.kill(os.getpid(), signal.SIGKILL))
storage.commit(temporary, "a.tar")
"""


def test_a_writer_killed_in_its_commit_leaves_nothing_visible_and_its_file_is_dropped_when_old(
    storage: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", DYING_COMMIT, storage.url], env=variables)
    assert ended.returncode == -9
    assert storage.names() == []
    [temporary] = tmp_path.iterdir()
    assert temporary.stat().st_size == 64_000_000
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    others = [S3Storage(f"{storage.url}/deeper").new_temporary("a.tar"), tmp_path / f"{TEMPORARY_PREFIX}a.tar-1"]
    for other in others:
        other.write_bytes(b"of another dataset, and of another program")
        os.utime(other, (0, 0))
    assert storage.discard_leftovers(3600, {"a.tar"}) == 0
    hours_ago = time.time() - 7200
    os.utime(temporary, (hours_ago, hours_ago))
    assert storage.discard_leftovers(3600) == 1
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert commit(storage, "a.tar", b"the next one's")
