"""Samples → committed shard: the bytes depend on the samples alone, and nobody sees half of anything."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_pictures import jpeg
from written_shards import failures, members

from shards.index import build_index, index_metadata, read_index
from shards.storage import TEMPORARY_PREFIX, LocalStorage
from shards.writer import Sample, recover_failures, to_json_bytes, write_shard

MakeSamples = Callable[..., list[Sample]]
FAILURES = [{"post_id": "p1", "reason": "not_found", "status": 404}, {"post_id": "p2", "reason": "timeout"}]


def leftovers(storage: LocalStorage) -> list[str]:
    return [name for name in os.listdir(storage.folder) if name.startswith(".")]


def test_a_shard_holds_its_samples_in_their_order(storage: LocalStorage, make_samples: MakeSamples) -> None:
    samples = make_samples(4, text=True)[::-1]
    shard = write_shard(storage, "000007", samples)
    assert (shard.name, shard.num_samples, shard.won) == ("000007", 4, True)
    expected = []
    for sample in samples:
        expected += [
            (f"{sample.key}.jpg", sample.image),
            (f"{sample.key}.json", json.dumps(sample.fields, separators=(",", ":")).encode()),
            (f"{sample.key}.txt", str(sample.text).encode()),
        ]
    assert members(storage.read("000007.tar")) == expected


def test_a_sample_without_text_has_no_text_member(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(1))
    assert [name for name, _ in members(storage.read("a.tar"))] == ["post0000-0.jpg", "post0000-0.json"]


def test_no_clock_and_no_user_goes_into_a_tar(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2, text=True))
    with tarfile.open(storage.folder / "a.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "root", "root")
            assert member.mode == 0o644
            assert member.pax_headers == {}


def test_the_same_samples_give_the_same_bytes_under_another_name_and_at_another_time(
    storage: LocalStorage, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(storage, "a", make_samples(3, text=True), FAILURES)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    write_shard(storage, "b", iter(make_samples(3, text=True)))
    assert storage.read("a.tar") == storage.read("b.tar")


WRITE = """
import sys
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
samples = [
    Sample(key="k" * 200, image=b"picture", image_extension="png", fields={"b": 1, "é": [0.1, None]}, text="t"),
    Sample(key="k2", image=b"", image_extension="webp", fields={}),
]
write_shard(LocalStorage(sys.argv[1]), sys.argv[2], samples)
"""


def test_the_same_samples_give_the_same_bytes_in_another_process(storage: LocalStorage) -> None:
    for name, environment in (
        ("a", {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"}),
        ("b", {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "USER": "else"}),
    ):
        subprocess.run(
            [sys.executable, "-c", WRITE, str(storage.folder), name], env=os.environ | environment, cwd="/", check=True
        )
    assert storage.read("a.tar") == storage.read("b.tar")
    # A member's name of more than 100 characters needs an extended header, which must not hold a clock either.
    assert members(storage.read("a.tar"))[0][0] == "k" * 200 + ".png"


def test_a_shard_without_samples_is_a_whole_tar(storage: LocalStorage) -> None:
    assert write_shard(storage, "a", [], FAILURES).num_samples == 0
    assert members(storage.read("a.tar")) == []
    assert failures(storage, "a") == FAILURES


def test_failures_may_be_added_until_the_last_sample_is_taken(storage: LocalStorage, make_samples: MakeSamples) -> None:
    collected: list[dict[str, Any]] = []

    def samples() -> Iterator[Sample]:
        for sample in make_samples(2):
            yield sample
            collected.append({"post_id": sample.key, "reason": "timeout"})

    write_shard(storage, "a", samples(), collected)
    assert failures(storage, "a") == collected
    assert len(collected) == 2


def test_a_shard_without_failures_has_an_empty_failures_file(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(1))
    assert storage.read("a.failures.jsonl") == b""


def test_the_writer_that_comes_second_changes_neither_the_tar_nor_its_failures(
    storage: LocalStorage, make_samples: MakeSamples
) -> None:
    write_shard(storage, "a", make_samples(2), FAILURES)
    before = storage.read("a.tar")
    shard = write_shard(storage, "a", make_samples(3, first=50), [{"post_id": "other", "reason": "refused"}])
    assert not shard.won
    assert storage.read("a.tar") == before
    assert failures(storage, "a") == FAILURES


@pytest.mark.parametrize("first", [0, 50], ids=["the same samples", "other samples"])
def test_the_writer_that_comes_second_leaves_nothing_behind(
    storage: LocalStorage, make_samples: MakeSamples, first: int
) -> None:
    write_shard(storage, "a", make_samples(2), FAILURES)
    write_shard(storage, "a", make_samples(2, first=first), [{"post_id": "other", "reason": "refused"}])
    assert sorted(os.listdir(storage.folder)) == ["a.failures.jsonl", "a.parquet", "a.tar"]


def test_samples_that_raise_leave_nothing_visible(storage: LocalStorage, make_samples: MakeSamples) -> None:
    def samples() -> Iterator[Sample]:
        yield from make_samples(2)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        write_shard(storage, "a", samples(), FAILURES)
    assert os.listdir(storage.folder) == []


def test_of_several_writers_one_wins_and_the_failures_are_its_own(
    storage: LocalStorage, make_samples: MakeSamples
) -> None:
    attempts = {number: make_samples(2, first=10 * number) for number in range(6)}
    barrier = threading.Barrier(len(attempts))
    winners: dict[str, list[int]] = {f"{unit:03d}": [] for unit in range(12)}
    errors: list[BaseException] = []

    def write(number: int) -> None:
        for name, won in winners.items():
            barrier.wait()
            try:
                if write_shard(storage, name, attempts[number], [{"attempt": number}]).won:
                    won.append(number)
            except BaseException as error:  # noqa: BLE001  a thread's error must reach the test
                errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for name, won in winners.items():
        assert len(won) == 1
        assert failures(storage, name) == [{"attempt": won[0]}]
        assert members(storage.read(f"{name}.tar"))[0][1] == attempts[won[0]][0].image
    assert leftovers(storage) == []


def test_several_runs_may_recover_the_same_failures_at_once(storage: LocalStorage, make_samples: MakeSamples) -> None:
    names = [f"{unit:03d}" for unit in range(40)]
    for name in names:
        write_shard(storage, name, make_samples(1), FAILURES)
        sha256 = hashlib.sha256(storage.read(f"{name}.tar")).hexdigest()
        os.rename(
            storage.folder / f"{name}.failures.jsonl", storage.folder / f"{TEMPORARY_PREFIX}{name}.failures-{sha256}"
        )
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def recover() -> None:
        for name in names:
            barrier.wait()
            try:
                recover_failures(storage, name)
            except BaseException as error:  # noqa: BLE001  a thread's error must reach the test
                errors.append(error)

    threads = [threading.Thread(target=recover) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(failures(storage, name) == FAILURES for name in names)


def test_recovering_where_nothing_was_staged_changes_nothing(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(1))
    storage.delete("a.failures.jsonl")
    recover_failures(storage, "a")
    assert sorted(os.listdir(storage.folder)) == ["a.parquet", "a.tar"]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "é", "x" * 231, "a\n"])
def test_a_key_that_webdataset_would_cut_or_misread_is_refused(key: str) -> None:
    with pytest.raises(AssertionError, match="not a sample key"):
        Sample(key=key, image=b"", image_extension="jpg", fields={})


def test_an_extension_that_is_no_picture_is_refused() -> None:
    with pytest.raises(AssertionError, match="not an image extension"):
        Sample(key="a", image=b"", image_extension="gif", fields={})


def test_json_is_one_line_of_utf8_with_the_keys_in_their_order() -> None:
    assert to_json_bytes({"b": "é\n", "a": [1, None]}) == '{"b":"é\\n","a":[1,null]}'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_that_no_other_reader_knows_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json_bytes({"x": number})


def test_half_an_emoji_does_not_stop_a_shard(storage: LocalStorage) -> None:
    # Posts cut off within a surrogate pair are common; json.loads passes the half on.
    half = json.loads('"cut off \\ud83d"')
    sample = Sample(key="a", image=jpeg(), image_extension="jpg", fields={"source": half}, text=half)
    write_shard(storage, "a", [sample], [{"url": half}])
    content = dict(members(storage.read("a.tar")))
    assert json.loads(content["a.json"]) == {"source": "cut off ?"}
    assert content["a.txt"] == b"cut off ?"
    assert failures(storage, "a") == [{"url": "cut off ?"}]


def test_a_shard_may_be_read_by_others_than_its_writer(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(1))
    umask = os.umask(0)
    os.umask(umask)
    assert Path(storage.folder / "a.tar").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_shard_made_again_after_it_was_removed_has_its_own_index_and_failures(tmp_path):
    storage = LocalStorage(tmp_path)
    for number in (1, 2):
        sample = Sample(key="a-0", image=b"x", image_extension="jpg", fields={"number": number})
        write_shard(storage, "000000", [sample], [{"number": number}])
        assert read_index(storage, "000000.tar")["number"].to_pylist() == [number]
        assert storage.read("000000.failures.jsonl") == b'{"number":%d}\n' % number
        storage.delete("000000.tar")


class _FoundAtOnce(LocalStorage):
    """A folder that another run looks at right after the commit, as it does with whatever it finds committed."""

    def commit(self, temporary: Path, name: str) -> bool:
        won = super().commit(temporary, name)
        recover_failures(self, name.removesuffix(".tar"))
        return won


def test_failures_stay_where_another_run_publishes_them_first(tmp_path: Path, make_samples: MakeSamples) -> None:
    storage = _FoundAtOnce(tmp_path)
    assert write_shard(storage, "000001", make_samples(2), [{"reason": "timeout"}]).won
    assert failures(storage, "000001") == [{"reason": "timeout"}]
    assert leftovers(storage) == []


@pytest.mark.parametrize("length", [1, 60, 96, 97, 150, 230])
def test_the_tar_is_what_tarfile_writes(storage: LocalStorage, length: int) -> None:
    """Names of more than 100 characters need extended headers."""
    contents = [os.urandom(size) for size in (1, 511, 512, 513, 70_000)]
    samples = [
        Sample(key=f"{number}{'k' * (length - 1)}", image=content, image_extension="png", fields={}, text="é")
        for number, content in enumerate(contents)
    ]
    write_shard(storage, "a", samples)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members(storage.read("a.tar")):
            member = tarfile.TarInfo(name)
            member.size, member.uname, member.gname = len(content), "root", "root"
            archive.addfile(member, io.BytesIO(content))
    assert [name for name, _ in members(storage.read("a.tar"))][:3] == [
        f"{samples[0].key}.{extension}" for extension in ("png", "json", "txt")
    ]
    assert storage.read("a.tar") == expected.getvalue()


def test_the_index_of_a_writer_is_the_one_that_its_tar_gives(storage: LocalStorage, make_samples: MakeSamples) -> None:
    odd = Sample(key="k" * 150, image=b"", image_extension="webp", fields={"label": "text", "more": [1, "a"]}, text="")
    write_shard(storage, "a", [*make_samples(3, text=True), *make_samples(2, first=3), odd])
    written = read_index(storage, "a.tar")
    made = build_index(storage.read("a.tar"), "a.tar")
    assert written.equals(made)
    assert index_metadata(written) == index_metadata(made)
