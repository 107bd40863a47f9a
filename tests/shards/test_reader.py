"""Where a picture's bytes come from: in place, from the cache, or by a request; and what is said of damaged ones."""

import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from faraway import Faraway

from shards.augment import AugmentConfig
from shards.cache import Lease, RemoteShard, ShardCache
from shards.errors import UserError
from shards.reader import DamagedSampleError, SampleReader, is_fetched_whole
from shards.stream import StreamConfig, TrainStream
from shards.view import View

Content = bytes | DamagedSampleError


@pytest.fixture
def far_view(view_copy: View) -> View:
    """`view_copy` with its dataset far away."""
    return replace(view_copy, datasets=[Faraway(Path(view_copy.datasets[0].url))])


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


def reader_of(view: View, cache: ShardCache | None = None, split: str = "train") -> SampleReader:
    return SampleReader(view, view.split(split), cache)


def storage_of(view: View) -> Faraway:
    [storage] = view.datasets
    assert isinstance(storage, Faraway)
    return storage


def expected(view: View, split: str = "train") -> list[bytes]:
    """The bytes of a split's pictures, cut out of the tars."""
    folder = Path(view.datasets[0].url)
    return [
        (folder / row["shard"]).read_bytes()[row["image_offset"] :][: row["image_length"]]
        for row in view.split(split).rows.to_pylist()
    ]


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetch_all(reader: SampleReader, cache: ShardCache) -> None:
    reader.expect(range(reader.num_shards))
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == sum(reader._is_cached))
    assert sum(reader._is_cached) == 5  # of the sixth, a single sample is kept: that is one request either way


def test_local_shards_are_read_in_place_without_threads_or_cache(view: View, cache: ShardCache) -> None:
    reader = reader_of(view, cache)
    assert not reader.uses_cache
    assert reader.read(range(41)) == expected(view)
    assert (reader._pool, reader._fetcher) == (None, None)
    assert cache.num_bytes() == 0


def test_what_is_not_fetched_yet_is_read_by_requests_and_then_from_the_cache(far_view: View, cache: ShardCache) -> None:
    storage, reader = storage_of(far_view), reader_of(far_view, cache)
    assert reader.uses_cache
    assert reader.read(range(41)) == expected(far_view)
    assert storage.range_reads.total() == 41
    fetch_all(reader, cache)
    wait_until(lambda: reader._fetcher is not None and len(reader._fetcher._leases) == sum(reader._is_cached))
    storage.range_reads.clear()
    order = random.Random(0).sample(range(41), 41)
    whole = expected(far_view)
    assert reader.read(order) == [whole[row] for row in order]
    assert storage.range_reads.total() == 1
    assert set(storage.reads.values()) == {1}
    reader.close()


def test_what_is_no_longer_expected_may_be_evicted(far_view: View, cache: ShardCache) -> None:
    reader = reader_of(far_view, cache)
    fetch_all(reader, cache)
    reader.expect([2])
    wait_until(lambda: reader._fetcher is not None and list(reader._fetcher._leases) == [2])
    tight = ShardCache(cache.folder, cache.num_bytes())
    other = Faraway(Path(far_view.url))
    content = bytes(tight.max_bytes - Path(far_view.datasets[0].url, "000002.tar").stat().st_size)
    other.replace("other.tar", content)
    tight.fetch(RemoteShard(other, "other.tar", len(content), hashlib.sha256(content).hexdigest())).close()
    assert len(list(cache.folder.glob("*.tar"))) == 2
    storage_of(far_view).range_reads.clear()
    rows = [row for row in range(41) if reader.shard_of(row) == 2]
    whole = expected(far_view)
    assert reader.read(rows) == [whole[row] for row in rows]
    assert storage_of(far_view).range_reads.total() == 0
    reader.close()


def test_without_a_cache_each_picture_is_a_request(far_view: View) -> None:
    reader = reader_of(far_view)
    assert not reader.uses_cache
    reader.expect(range(reader.num_shards))
    assert reader.read(range(41)) == expected(far_view)
    assert storage_of(far_view).range_reads.total() == 41
    assert not storage_of(far_view).reads


def test_of_a_shard_of_which_few_bytes_are_kept_only_these_are_read(
    far_view: View, cache: ShardCache, make_view: Callable[..., View], tmp_path: Path
) -> None:
    table = far_view.table
    few = pc.and_(pc.equal(table["shard"], "000005.tar"), pc.not_equal(table["key"], "post0036-0"))
    thin = make_view(Path(far_view.datasets[0].url), tmp_path / "thin", table.filter(pc.invert(few)))
    thin = replace(thin, datasets=far_view.datasets)
    reader = reader_of(thin, cache)
    reader.expect(range(reader.num_shards))
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == sum(reader._is_cached))
    assert reader.read(range(len(expected(thin)))) == expected(thin)
    assert "000005.tar" not in storage_of(thin).reads
    reader.close()


@pytest.mark.parametrize(
    ("num_kept", "kept_bytes", "shard_bytes", "whole"),
    [
        (1000, 100_000_000, 102_000_000, True),
        (500, 50_000_000, 102_000_000, True),
        (60, 6_000_000, 102_000_000, False),
        (1, 100_000, 101_000, False),
        (2, 2000, 1_000_000, True),
        (3, 150_000_000, 400_000_000, False),
    ],
)
def test_a_shard_is_fetched_whole_where_that_is_faster(
    num_kept: int, kept_bytes: int, shard_bytes: int, whole: bool
) -> None:
    assert is_fetched_whole(num_kept, kept_bytes, shard_bytes) is whole


def test_a_cache_that_is_too_small_is_said_once_and_all_is_read(
    far_view: View, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = sorted(shard["bytes"] for shard in far_view.shards.to_pylist())
    cache = ShardCache(tmp_path / "cache", sizes[0] + sizes[1])
    reader = reader_of(far_view, cache)
    with caplog.at_level(logging.WARNING):
        reader.expect(range(reader.num_shards))
        for _ in range(3):
            assert reader.read(range(41)) == expected(far_view)
            time.sleep(0.3)
    assert 0 < cache.num_bytes() <= cache.max_bytes
    assert caplog.text.count("do not hold all shards that are read at a time") == 1
    assert "stream.max_cache_gib" in caplog.text
    reader.close()


def test_of_a_shard_that_is_not_the_indexed_one_each_picture_is_judged_by_itself_fetched_or_not(
    far_view: View, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    whole = expected(far_view)
    reader = reader_of(far_view, cache)
    first, second, *_ = (row for row in range(41) if reader.shard_of(row) == 2)
    place = far_view.split("train").rows.slice(second, 1).to_pylist()[0]
    with open(Path(far_view.datasets[0].url, "000002.tar"), "r+b") as file:
        file.seek(place["image_offset"] + 50)
        file.write(b"\0\1\2\3")
    before = reader.read([first, second])
    reader.expect([2])
    wait_until(lambda: "000002.tar: its sha256 is not the one that it was indexed with" in caplog.text)
    for contents in (before, reader.read([first, second])):
        assert contents[0] == whole[first]
        assert damaged(contents[1]) == "its bytes are not those that were indexed"
    reader.close()


def test_a_range_that_was_damaged_on_the_way_is_read_again(far_view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range = Faraway.read_range
    once_read = set()

    def damaging(self: Faraway, name: str, offset: int, length: int) -> bytes:
        content = read_range(self, name, offset, length)
        if (name, offset) not in once_read and offset % 3:
            once_read.add((name, offset))
            return bytes([content[0] ^ 1]) + content[1:]
        return content

    monkeypatch.setattr(Faraway, "read_range", damaging)
    assert reader_of(far_view).read(range(41)) == expected(far_view)
    assert 10 < len(once_read) < 41


def damaged(content: Content) -> str:
    assert isinstance(content, DamagedSampleError)
    return str(content)


def test_bytes_that_are_always_others_are_a_damaged_sample(far_view: View) -> None:
    row = far_view.split("train").rows.slice(7, 1).to_pylist()[0]
    with open(Path(far_view.datasets[0].url, row["shard"]), "r+b") as file:
        file.seek(row["image_offset"] + 100)
        file.write(b"\0\1\2\3")
    whole = expected(far_view)
    contents = reader_of(far_view).read([6, 7, 8])
    assert [contents[0], contents[2]] == [whole[6], whole[8]]
    assert damaged(contents[1]) == "its bytes are not those that were indexed"


@pytest.mark.parametrize("is_far", [False, True])
def test_a_shard_that_is_cut_off_gives_damaged_samples_beyond_its_end(view_copy: View, is_far: bool) -> None:
    view = replace(view_copy, datasets=[Faraway(Path(view_copy.datasets[0].url))]) if is_far else view_copy
    whole = expected(view)
    path = Path(view.datasets[0].url, "000005.tar")
    reader = reader_of(view)
    rows = [row for row in range(41) if reader.shard_name(row) == "000005.tar"]
    last = view.split("train").rows.slice(rows[-1], 1).to_pylist()[0]
    os.truncate(path, last["image_offset"] + 10)
    *contents, cut = reader.read(rows)
    assert contents == whole[rows[0] : rows[-1]]
    assert "ends before byte" in damaged(cut)


def test_a_cache_whose_files_cannot_be_read_is_done_without(
    far_view: View, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(far_view, cache)
    fetch_all(reader, cache)

    def broken(self: Lease, offset: int, length: int) -> bytes:
        raise OSError("input/output error")

    monkeypatch.setattr(Lease, "read_range", broken)
    assert reader.read(range(41)) == expected(far_view)
    reader.close()


@pytest.mark.parametrize("damage", ["a bit", "cut"])
def test_a_cached_shard_that_went_bad_is_read_from_the_storage_and_fetched_anew(
    far_view: View, cache: ShardCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, whole = reader_of(far_view, cache), expected(far_view)
    fetch_all(reader, cache)
    wait_until(lambda: reader._fetcher is not None and len(reader._fetcher._leases) == 5)
    path = cache.folder / f"{reader._shards[2].sha256}.tar"
    good = path.read_bytes()
    rows = [row for row in range(41) if reader.shard_of(row) == 2]
    offset = far_view.split("train").rows["image_offset"][rows[0]].as_py()
    with open(path, "r+b") as file:
        if damage == "cut":
            file.truncate(offset + 10)
        else:
            file.seek(offset + 10)
            file.write(bytes([good[offset + 10] ^ 1]))
    other = cache.lease(reader._shards[2])
    assert other is not None
    storage_of(far_view).range_reads.clear()
    assert reader.read(rows) == [whole[row] for row in rows]
    assert storage_of(far_view).range_reads.total() >= 1
    assert "has gone bad, and is fetched anew" in caplog.text
    wait_until(lambda: path.exists() and path.read_bytes() == good)
    # Who has the bad file open still, as another process may, drops that one alone.
    cache.drop(reader._shards[2], other)
    assert path.read_bytes() == good
    wait_until(lambda: reader._fetcher is not None and len(reader._fetcher._leases) == 5)
    storage_of(far_view).range_reads.clear()
    assert reader.read(rows) == [whole[row] for row in rows]
    assert storage_of(far_view).range_reads.total() == 0
    reader.close()


def test_a_cached_shard_that_is_not_as_the_view_says_is_fetched_once(
    view_copy: View, cache: ShardCache, make_view: Callable[..., View], tmp_path: Path
) -> None:
    crc32 = view_copy.table["image_crc32"].to_pylist()
    column = view_copy.table.schema.get_field_index("image_crc32")
    table = view_copy.table.set_column(column, "image_crc32", pa.array([crc ^ 1 for crc in crc32], pa.uint32()))
    lying = make_view(Path(view_copy.datasets[0].url), tmp_path / "lying", table)
    far_view = replace(lying, datasets=[Faraway(Path(view_copy.datasets[0].url))])
    reader = reader_of(far_view, cache)
    fetch_all(reader, cache)
    for _ in range(2):
        for content in reader.read(range(41)):
            assert damaged(content) == "its bytes are not those that were indexed"
    time.sleep(0.5)
    assert set(storage_of(far_view).reads.values()) == {1}
    reader.close()


def test_a_stream_that_was_closed_fetches_anew(far_view: View, cache: ShardCache) -> None:
    config = StreamConfig(num_lanes=2, num_workers=0, cache_folder=str(cache.folder))
    stream = TrainStream(far_view, config=config, size=16, augment=AugmentConfig(), global_batch_size=2)
    next(iter(stream))
    stream.close()
    next(iter(stream))
    fetcher = stream._dataset.reader._fetcher
    assert fetcher is not None
    assert fetcher._expected
    stream.close()


@pytest.mark.parametrize("is_far", [False, True])
def test_a_length_of_10_gb_takes_no_memory(
    dataset_copy: Path, tmp_path: Path, make_view: Callable[..., View], view_copy: View, is_far: bool, monkeypatch
) -> None:
    lengths = [
        10**10 if number == 3 else length for number, length in enumerate(view_copy.table["image_length"].to_pylist())
    ]
    column = view_copy.table.schema.get_field_index("image_length")
    table = view_copy.table.set_column(column, "image_length", pa.array(lengths))
    view = make_view(dataset_copy, tmp_path / "lying", table)
    if is_far:
        view = replace(view, datasets=[Faraway(dataset_copy)])
    reader = reader_of(view)
    [row] = [row for row, length in enumerate(view.split("train").rows["image_length"].to_pylist()) if length == 10**10]
    asked_for = []

    def asked(descriptor: int, length: int, offset: int) -> bytes:
        asked_for.append(length)
        return b""

    monkeypatch.setattr("os.pread", asked)
    assert "ends before byte" in damaged(reader.read([row])[0])
    assert not asked_for


def test_a_shard_that_is_gone_is_a_users_error(far_view: View, cache: ShardCache) -> None:
    Path(far_view.datasets[0].url, "000000.tar").unlink()
    reader = reader_of(far_view, cache)
    reader.expect([0])
    for _ in range(2):
        with pytest.raises(UserError, match=r"000000\.tar: this shard of the view is not there"):
            reader.read([0])
        time.sleep(0.1)
    reader.close()


def _read_and_compare(reader: SampleReader, whole: list[bytes]) -> None:
    assert reader.read(range(len(whole))) == whole
    reader.expect(range(reader.num_shards))
    assert reader._fetcher is not None
    wait_until(lambda: len(reader._fetcher._leases) == sum(reader._is_cached))  # type: ignore[union-attr]
    assert reader.read(range(len(whole))) == whole


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_goes_to_other_processes_which_fetch_for_themselves(
    far_view: View, cache: ShardCache, method: str
) -> None:
    reader = reader_of(far_view, cache)
    if method == "fork":
        fetch_all(reader, cache)
        reader.read(range(41))  # with threads and leases of its own, which the child must not use
    whole = expected(far_view)
    process = multiprocessing.get_context(method).Process(target=_read_and_compare, args=(reader, whole))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert reader.read(range(41)) == whole
    reader.close()


def test_a_closed_reader_holds_nothing_and_may_read_again(far_view: View, cache: ShardCache) -> None:
    reader = reader_of(far_view, cache)
    fetch_all(reader, cache)
    reader.close()
    pickle.dumps(reader)
    everything = ShardCache(cache.folder, cache.num_bytes())
    shard = reader._shards[0]
    big = Faraway(Path(far_view.url))
    big.replace("big.tar", bytes(everything.max_bytes))
    sha256 = hashlib.sha256(bytes(everything.max_bytes)).hexdigest()
    everything.fetch(RemoteShard(big, "big.tar", everything.max_bytes, sha256)).close()
    assert cache.lease(shard) is None
    assert reader.read(range(41)) == expected(far_view)
    reader.close()
