"""Broken tars of every kind are reported with shard and key; whole ones, foreign ones too, are not."""

import hashlib
from pathlib import Path

import made_pictures as made
import pytest
import webdataset as wds
from made_tars import claiming_less_than_nothing, claiming_ten_gigabytes, make_tar

from shards.errors import UserError
from shards.index import read_index
from shards.inspection import find_shards, measure_shards, verify_shards
from shards.storage import LocalStorage
from shards.verify import ShardReport, verify_shard

JPEG = made.jpeg()


def verified(folder: Path, content: bytes, sha256: str | None = None) -> ShardReport:
    storage = LocalStorage(folder, create=True)
    storage.replace("a.tar", content)
    return verify_shard(storage, "a.tar", sha256)


def test_a_whole_shard_has_no_problems(tmp_path):
    content = make_tar(("x.jpg", JPEG), ("x.json", b"{}"), ("x.txt", "é".encode()), ("y.png", made.png()))
    report = verified(tmp_path, content, hashlib.sha256(content).hexdigest())
    assert report == ShardReport(name="a.tar", bytes=len(content), samples=2, problems=[])


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("x.jpg", made.GARBAGE)], ("x", ".jpg cannot be decoded")),
        ([("x.jpg", JPEG[:200])], ("x", ".jpg cannot be decoded")),
        ([("x.jpg", b"")], ("x", ".jpg cannot be decoded")),
        ([("x.jpg", JPEG), ("x.json", b"{")], ("x", ".json is not JSON")),
        ([("x.jpg", JPEG), ("x.json", b"[1]")], ("x", ".json holds no object")),
        ([("x.jpg", JPEG), ("x.txt", b"\xff")], ("x", ".txt is not UTF-8")),
        ([("x.json", b"{}"), ("x.cls", b"1")], ("x", "has no picture, only .cls, .json")),
        ([("x.jpg", JPEG), ("x.jpg", JPEG)], ("x", "has two members .jpg")),
        ([("x.jpg", JPEG), ("y.jpg", JPEG), ("x.json", b"{}")], ("x", "stands in several places")),
        ([("../x.jpg", JPEG)], ("../x", "would be unpacked outside")),
        ([("{tmp_path}/x.jpg", JPEG)], ("{tmp_path}/x", "would be unpacked outside")),
        ([("a/../../x.jpg", JPEG)], ("a/../../x", "would be unpacked outside")),
    ],
    ids=str,
)
def test_what_is_broken_is_told_with_its_key_and_its_neighbours_are_read(tmp_path, members, told):
    members = [(name.format(tmp_path=tmp_path), content) for name, content in members]
    key, what = (part.format(tmp_path=tmp_path) for part in told)
    # Two folders deep, so that what leaves the tar's own by one or two steps is seen.
    report = verified(tmp_path / "in" / "here", make_tar(("before.jpg", JPEG), *members, ("zafter.jpg", JPEG)))
    assert [problem.key for problem in report.problems if what in problem.what] == [key]
    assert {problem.key for problem in report.problems} == {key}
    assert str(report.problems[0]).startswith(f"a.tar: {key}: ")
    assert report.samples == 2 + any(name.startswith("y.") for name, _ in members)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "in" / "here" / "a.tar"]


@pytest.mark.parametrize(
    "content",
    [
        make_tar(("before.jpg", JPEG), ("x.jpg", JPEG))[: -10240 - 600],
        make_tar(("before.jpg", JPEG), ("x.jpg", JPEG))[:2000],
        make_tar(("before.jpg", JPEG))[: 512 + len(JPEG) // 512 * 512 + 512] + made.GARBAGE,
        b"",
        made.GARBAGE,
    ],
    ids=["no end", "cut", "garbage behind", "empty", "garbage"],
)
def test_a_tar_that_is_not_whole_is_told_so(tmp_path, content):
    report = verified(tmp_path, content)
    assert [problem.key for problem in report.problems if "not a whole tar" in problem.what] == [None]


def test_a_member_that_claims_ten_gigabytes_takes_none(tmp_path):
    report = verified(tmp_path, claiming_ten_gigabytes("before.jpg", JPEG))
    assert report.samples == 1
    assert [problem.what[:19] for problem in report.problems] == ["not a whole tar fil"]


@pytest.mark.parametrize("size", [-1, -512, -1024])
def test_a_member_of_a_negative_size_is_told_and_reading_ends(tmp_path, size):
    report = verified(tmp_path, claiming_less_than_nothing("before.jpg", JPEG, size))
    assert report.samples == 1
    assert [(problem.key, problem.what) for problem in report.problems] == [
        (None, f"not a whole tar file: negative.jpg claims {size} bytes, and ends before it begins")
    ]


def test_another_sha256_and_the_index_of_another_tar_are_told(tmp_path):
    verified(tmp_path, make_tar(("x.jpg", JPEG)))
    read_index(LocalStorage(tmp_path), "a.tar")
    report = verified(tmp_path, make_tar(("y.jpg", JPEG)), sha256="0" * 64)
    assert [problem.what.partition(" ")[0] for problem in report.problems] == ["its", "a.parquet"]
    assert report.problems[1].what.endswith(f"is the index of another tar: run `xmodal shards index {tmp_path}`")
    [shard] = measure_shards(find_shards(str(tmp_path)), 1, keep_indexes=True)
    assert (shard.samples, shard.problems) == (1, [])
    assert read_index(LocalStorage(tmp_path), "a.tar")["key"].to_pylist() == ["y"]
    assert [report.problems for report in verify_shards(find_shards(str(tmp_path)), 1)] == [[]]


def test_what_webdataset_writes_is_whole_and_can_be_indexed(tmp_path):
    with wds.ShardWriter(str(tmp_path / "%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"folder/{number:04d}", "jpg": made.jpeg(seed=number), "json": {"n": number}})
    shards = find_shards(str(tmp_path))
    assert [(report.samples, report.problems) for report in verify_shards(shards, 2)] == [(4, []), (4, []), (2, [])]
    assert not list(tmp_path.glob("*.parquet"))
    assert [shard.samples for shard in measure_shards(shards, 1, keep_indexes=False)] == [4, 4, 2]
    assert not list(tmp_path.glob("*.parquet"))
    assert [shard.samples for shard in measure_shards(shards, 2, keep_indexes=True)] == [4, 4, 2]
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_pattern_means_the_tars_it_names(tmp_path):
    for number in range(4):
        (tmp_path / f"{number:02d}.tar").write_bytes(make_tar((f"{number}.jpg", JPEG)))
    shards = find_shards(f"{tmp_path}/{{01..03}}.tar")
    assert shards.names == ["01.tar", "02.tar", "03.tar"]
    (tmp_path / "02.tar").unlink()
    reports = list(verify_shards(shards, 1))
    assert [problem.what for report in reports for problem in report.problems] == ["no such shard"]


@pytest.mark.parametrize("keep_indexes", [False, True])
def test_a_shard_that_cannot_be_read_is_told_and_the_others_are_measured(tmp_path, keep_indexes):
    for number in (0, 2):
        (tmp_path / f"{number}.tar").write_bytes(make_tar((f"{number}.jpg", JPEG)))
    (tmp_path / "1.tar").mkdir()
    shards = find_shards(f"{tmp_path}/{{0..2}}.tar")
    first, broken, last = measure_shards(shards, 1, keep_indexes=keep_indexes)
    assert (first.samples, last.samples) == (1, 1)
    assert str(broken).startswith("1.tar: cannot be read: ")
    [report] = [report for report in verify_shards(shards, 1) if report.problems]
    assert str(report.problems[0]).startswith("1.tar: cannot be read: ")


def test_what_is_broken_in_samples_is_told_when_they_are_measured(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar(("x.jpg", JPEG), ("x.json", b"{"), ("y.txt", b"")))
    for keep_indexes in (False, True, True):
        [shard] = measure_shards(find_shards(str(tmp_path)), 1, keep_indexes=keep_indexes)
        assert [str(problem)[:14] for problem in shard.problems] == ["a.tar: x: .jso", "a.tar: y: has "]


@pytest.mark.parametrize("pattern", ["{a,b}/{0..3}.tar", "{a/0,b/1}.tar", "x{0..1}/{0..1}/0.tar"])
def test_a_pattern_of_several_folders_is_a_users_error(tmp_path, pattern):
    with pytest.raises(UserError, match=r"means tars in [24] folders") as caught:
        find_shards(f"{tmp_path}/{pattern}")
    assert "one folder at a time" in caught.value.remedy


def test_braces_in_the_folder_that_mean_one_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.tar").write_bytes(make_tar(("0.jpg", JPEG)))
    shards = find_shards(f"{tmp_path}/{{a..a}}/{{0..0}}.tar")
    assert (shards.storage.url, shards.names) == (f"{tmp_path}/a", ["0.tar"])
