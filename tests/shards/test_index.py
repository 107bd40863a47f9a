"""The index is derived from the tar alone: rebuilt when it is not of this tar, right for tars made by anyone."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from made_pictures import jpeg, pixels, png
from made_tars import (
    claiming_less_than_nothing,
    make_tar,
    named_in_latin_1,
    with_header_of_a_size,
    with_headers_of_headers,
)
from PIL import Image

from shards.errors import UserError
from shards.index import (
    INDEX_VERSION,
    build_index,
    index_metadata,
    index_name,
    index_problems,
    read_index,
    renew_index,
)
from shards.storage import CorruptObjectError, LocalStorage
from shards.writer import Sample, write_shard

MakeSamples = Callable[..., list[Sample]]


def tar_of_fields(*fields: Any) -> bytes:
    """A sample for each JSON value."""
    members = [
        (f"{number}.{extension}", content)
        for number, value in enumerate(fields)
        for extension, content in (("jpg", b"picture"), ("json", json.dumps(value).encode()))
    ]
    return make_tar(*members)


def column(tar: bytes, name: str) -> list[Any]:
    """A column of the tar's index, as it comes back from Parquet."""
    file = io.BytesIO()
    pq.write_table(build_index(tar, "a.tar"), file)
    return pq.read_table(file)[name].to_pylist()


def test_an_index_has_the_name_of_its_tar() -> None:
    assert index_name("000123.tar") == "000123.parquet"


def test_offsets_give_the_very_bytes_of_each_member(storage: LocalStorage, make_samples: MakeSamples) -> None:
    samples = make_samples(3, text=True) + make_samples(2, first=3)
    write_shard(storage, "a", samples)
    rows = read_index(storage, "a.tar").to_pylist()
    assert [row["key"] for row in rows] == [sample.key for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert row["image_ext"] == "jpg"
        assert storage.read_range("a.tar", row["image_offset"], row["image_length"]) == sample.image
        fields = json.loads(storage.read_range("a.tar", row["json_offset"], row["json_length"]))
        assert fields == sample.fields
        assert {name: row[name] for name in fields} == fields
        if sample.text is None:
            assert (row["txt_offset"], row["txt_length"]) == (None, None)
        else:
            assert storage.read_range("a.tar", row["txt_offset"], row["txt_length"]).decode() == sample.text


def test_offsets_are_right_behind_names_too_long_for_a_plain_header(storage: LocalStorage) -> None:
    samples = [
        Sample(key="k" * 220 + str(number), image=b"%d" % number * 99, image_extension="png", fields={})
        for number in range(3)
    ]
    write_shard(storage, "a", samples)
    for row, sample in zip(read_index(storage, "a.tar").to_pylist(), samples, strict=True):
        assert row["key"] == sample.key
        assert storage.read_range("a.tar", row["image_offset"], row["image_length"]) == sample.image


def test_an_index_knows_the_size_and_sha256_of_its_tar(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2))
    read_index(storage, "a.tar")
    content = storage.read("a.tar")
    metadata = index_metadata(read_index(storage, "a.tar"))
    assert metadata["tar_bytes"] == str(len(content))
    assert metadata["tar_sha256"] == hashlib.sha256(content).hexdigest()


def test_an_index_is_made_once_and_then_read(
    storage: LocalStorage, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(storage, "a", make_samples(2))
    made = read_index(storage, "a.tar")
    assert storage.exists("a.parquet")
    monkeypatch.setattr("shards.index.build_index", None)
    read = read_index(storage, "a.tar")
    assert read.equals(made)
    assert index_metadata(read) == index_metadata(made)


def test_columns_that_are_asked_for_are_read_where_there_are_such(
    storage: LocalStorage, make_samples: MakeSamples
) -> None:
    write_shard(storage, "a", make_samples(3))
    whole = read_index(storage, "a.tar")
    columns = ["soft_label", "key", "no such", "post_id"]
    part = read_index(storage, "a.tar", columns=columns)
    assert part.select(["key", "post_id", "soft_label"]).equals(whole.select(["key", "post_id", "soft_label"]))
    assert part.num_columns == 3
    assert index_metadata(part) == index_metadata(whole)
    storage.delete("a.parquet")
    made = read_index(storage, "a.tar", columns=columns)
    assert made.select(part.column_names).equals(part)
    assert made.num_columns == 3
    assert read_index(storage, "a.tar").equals(whole)


def test_a_lost_index_is_made_again_with_the_same_bytes(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2))
    read_index(storage, "a.tar")
    before = storage.read("a.parquet")
    storage.delete("a.parquet")
    read_index(storage, "a.tar")
    assert storage.read("a.parquet") == before


def test_an_index_of_a_tar_of_another_size_is_made_again(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2))
    read_index(storage, "a.tar")
    write_shard(storage, "b", make_samples(30))
    storage.replace("b.parquet", storage.read("a.parquet"))
    assert read_index(storage, "b.tar").num_rows == 30
    assert pq.read_table(io.BytesIO(storage.read("b.parquet"))).num_rows == 30


@pytest.mark.parametrize("keep", [0, 3, 100, -1], ids=["empty", "3 bytes", "100 bytes", "all but the last byte"])
def test_a_cut_off_index_is_made_again(storage: LocalStorage, make_samples: MakeSamples, keep: int) -> None:
    write_shard(storage, "a", make_samples(2))
    whole = read_index(storage, "a.tar")
    storage.replace("a.parquet", storage.read("a.parquet")[:keep])
    read_index(storage, "a.tar")
    assert read_index(storage, "a.tar").equals(whole, check_metadata=True)


def test_an_index_with_damaged_pages_is_made_again(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2))
    whole = read_index(storage, "a.tar")
    content = bytearray(storage.read("a.parquet"))
    content[4:200] = bytes(196)
    storage.replace("a.parquet", bytes(content))
    read_index(storage, "a.tar")
    assert read_index(storage, "a.tar").equals(whole, check_metadata=True)


def test_some_other_parquet_file_in_the_place_of_an_index_stays_and_the_index_has_another_name(
    storage: LocalStorage, make_samples: MakeSamples
) -> None:
    write_shard(storage, "a", make_samples(2))
    index = storage.read("a.parquet")
    file = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), file)
    storage.replace("a.parquet", file.getvalue())
    for _ in range(2):
        assert read_index(storage, "a.tar").num_rows == 2
        assert storage.read("a.parquet") == file.getvalue()
        assert storage.read("a.index.parquet") == index


def test_an_index_made_by_another_version_is_made_again(storage: LocalStorage, make_samples: MakeSamples) -> None:
    write_shard(storage, "a", make_samples(2))
    whole = storage.read("a.parquet")
    metadata = index_metadata(read_index(storage, "a.tar")) | {"index_version": "1"}
    file = io.BytesIO()
    pq.write_table(build_index(make_tar(("z.jpg", b"")), "z.tar").replace_schema_metadata(metadata), file)
    storage.replace("a.parquet", file.getvalue())
    made = read_index(storage, "a.tar")
    assert made["key"].to_pylist() == ["post0000-0", "post0001-0"]
    assert index_metadata(made)["index_version"] == INDEX_VERSION
    assert storage.read("a.parquet") == whole


def test_an_index_of_another_tar_of_the_same_size_is_made_again_where_the_tar_is_read(storage: LocalStorage) -> None:
    before, after = make_tar(("x.jpg", b"one")), make_tar(("y.jpg", b"other"), ("y.json", b"{}"))
    assert len(before) == len(after)
    storage.replace("a.tar", before)
    kept = renew_index(storage, "a.tar")
    storage.replace("a.tar", after)
    assert read_index(storage, "a.tar").equals(kept)
    made = renew_index(storage, "a.tar")
    assert made.equals(build_index(after, "a.tar"), check_metadata=True)
    assert read_index(storage, "a.tar").equals(made, check_metadata=True)
    written = (storage.folder / "a.parquet").stat().st_mtime_ns
    assert renew_index(storage, "a.tar").equals(made)
    assert (storage.folder / "a.parquet").stat().st_mtime_ns == written


def test_an_index_whose_bytes_the_storage_says_are_others_is_made_again(
    storage: LocalStorage, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(storage, "a", make_samples(2))
    whole = storage.read("a.parquet")
    read = LocalStorage.read

    def corrupt(self: LocalStorage, name: str) -> bytes:
        if name.endswith(".parquet"):
            raise CorruptObjectError(f"{name}: its sha256 is not the one it was written with")
        return read(self, name)

    storage.delete("a.parquet")
    with monkeypatch.context() as now:
        now.setattr(LocalStorage, "read", corrupt)
        assert read_index(storage, "a.tar").num_rows == 2
    assert storage.read("a.parquet") == whole


def test_a_tar_cut_off_anywhere_before_its_end_mark_is_a_users_error() -> None:
    whole = make_tar(("a.jpg", b"x" * 700), ("a.json", b"{}"), ("b.jpg", b"y" * 700), ("b.json", b'{"c": 1}'))
    members_end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for end in [*range(0, members_end + 1, 128), members_end - 1, members_end + 1]:
        with pytest.raises(UserError, match=r"store/a\.tar: not a whole tar file") as caught:
            build_index(whole[:end], "store/a.tar")
        assert caught.value.remedy
    assert build_index(whole, "store/a.tar").num_rows == 2


@pytest.mark.parametrize("size", [-1, -512, -700, -1024, -(10**15)])
def test_a_member_of_a_negative_size_is_a_users_error_that_names_it(size: int) -> None:
    tar = claiming_less_than_nothing("a.jpg", b"x" * 700, size)
    with pytest.raises(UserError, match=rf"not a whole tar file: negative\.jpg claims {size} bytes"):
        build_index(tar, "a.tar")


@pytest.mark.parametrize(
    "tar",
    [with_header_of_a_size(2**70), with_header_of_a_size(-(2**70)), with_headers_of_headers(2000)],
    ids=["2^70", "-2^70", "2000 headers"],
)
def test_headers_that_make_no_sense_are_a_users_error(tar: bytes) -> None:
    with pytest.raises(UserError, match="not a whole tar file"):
        build_index(tar, "a.tar")


def test_a_name_that_is_not_utf_8_is_a_key_all_the_same() -> None:
    assert build_index(named_in_latin_1(b"picture"), "a.tar")["key"].to_pylist() == ["\ufffd"]


@pytest.mark.parametrize(
    ("members", "problems"),
    [
        ([("x.jpg", b""), ("x.json", b"{}"), ("x.txt", b"")], []),
        ([("x.jpg", b""), ("x.json", b"{")], [("x", ".json is not JSON")]),
        ([("x.jpg", b""), ("x.json", b"[1]")], [("x", ".json holds no object")]),
        ([("x.txt", b""), ("x.json", b"{}")], [("x", "has no picture, only .json, .txt")]),
        ([("x.jpg", b""), ("x.jpg", b"")], [("x", "has two members .jpg")]),
        ([("x.jpg", b""), ("y.jpg", b""), ("x.png", b"")], [("x", "stands in several places")]),
        ([("../x.jpg", b"")], [("../x", "its member '../x.jpg' would be unpacked outside")]),
        ([("/x.jpg", b"")], [("/x", "its member '/x.jpg' would be unpacked outside")]),
        ([("README", b""), ("a/.hidden", b""), ("x.jpg", b""), ("x.", b""), ("x.json", b"{}")], []),
    ],
    ids=str,
)
def test_what_is_broken_in_a_sample_stands_in_the_index_with_its_key(
    storage: LocalStorage, members: list, problems: list
) -> None:
    storage.replace("a.tar", make_tar(("before.jpg", b""), *members, ("zafter.jpg", b"")))
    for _ in range(2):  # made, then read
        index = read_index(storage, "a.tar")
        told = index_problems(index)
        assert [(key, what[: len(start)]) for (key, what), (_, start) in zip(told, problems, strict=True)] == problems
        assert {"before", "zafter"} <= set(index["key"].to_pylist())


@pytest.mark.parametrize("damaged_header", [0, 1536, 2560, 4096])
def test_a_tar_with_a_damaged_header_is_a_users_error(damaged_header: int) -> None:
    tar = bytearray(make_tar(("a.jpg", b"x" * 700), ("a.json", b"{}"), ("b.jpg", b"y" * 700), ("b.json", b"{}")))
    tar[damaged_header] ^= 0xFF
    with pytest.raises(UserError, match="not a whole tar file"):
        build_index(bytes(tar), "a.tar")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, jpeg(200, 200)], ids=["empty", "html", "jpeg"])
def test_what_is_no_tar_is_a_users_error(storage: LocalStorage, content: bytes) -> None:
    storage.replace("a.tar", content)
    with pytest.raises(UserError, match="not a whole tar file"):
        read_index(storage, "a.tar")
    assert not storage.exists("a.parquet")


def test_a_tar_without_samples_has_an_index_without_rows(storage: LocalStorage) -> None:
    write_shard(storage, "a", [])
    for _ in range(2):
        index = read_index(storage, "a.tar")
        assert index.num_rows == 0
        assert "image_offset" in index.column_names


def test_a_webdataset_made_elsewhere_is_indexed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    pictures = {}
    with wds.TarWriter(str(tmp_path / "foreign.tar")) as writer:
        for number in range(4):
            key = f"class{number % 2}/photos.v2/img_{number}"
            pictures[key] = jpeg(seed=number)
            writer.write({"__key__": key, "jpg": pictures[key], "cls": number, "txt": f"text {number}"})
    rows = read_index(storage, "foreign.tar").to_pylist()
    assert [row["key"] for row in rows] == list(pictures)
    for number, row in enumerate(rows):
        assert storage.read_range("foreign.tar", row["image_offset"], row["image_length"]) == pictures[row["key"]]
        text = storage.read_range("foreign.tar", row["txt_offset"], row["txt_length"])
        assert text.decode() == f"text {number}"
        assert row["json_offset"] is None


def test_webdataset_and_the_index_agree_on_what_a_sample_is(tmp_path: Path) -> None:
    # A name is cut at the first dot after its last slash; folders may have dots.
    (tmp_path / "a.tar").write_bytes(
        make_tar(
            ("v1.0/a.jpg", jpeg(seed=1)),
            ("v1.0/a.seg.png", png(seed=2)),
            ("v1.0/a.b.json", b"{}"),
            ("v1.1/a.PNG", png(seed=3)),
            ("v1.1/a.Json", b'{"x": 1}'),
            ("v1.1/readme", b"no sample"),
        )
    )
    theirs = list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    ours = read_index(LocalStorage(tmp_path), "a.tar").to_pylist()
    pictures = {sample["__key__"]: sample.get("jpg", sample.get("png")) for sample in theirs}
    content = (tmp_path / "a.tar").read_bytes()
    assert [row["key"] for row in ours] == ["v1.0/a", "v1.1/a"]
    for row in ours:
        start = row["image_offset"]
        assert content[start : start + row["image_length"]] == pictures[row["key"]]
    assert [row["x"] for row in ours] == [None, 1]


def test_members_that_are_no_pictures_or_no_files_are_passed_over() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("a/1.txt", "a/2.jpg", "a/2.key", "a/3.json", "._4.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    assert build_index(file.getvalue(), "a.tar")["key"].to_pylist() == ["a/2"]


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[1, 2]", b'"text"', b"{"])
def test_a_json_member_that_holds_no_fields_gives_none(content: bytes) -> None:
    index = build_index(make_tar(("a.jpg", b""), ("a.json", content)), "a.tar")
    assert index.num_rows == 1
    assert index["json_length"].to_pylist() == [len(content)]


def test_fields_that_only_some_samples_have_are_null_for_the_others() -> None:
    assert column(tar_of_fields({"a": 1}, {}, {"a": 2, "b": "x"}), "a") == [1, None, 2]
    assert column(tar_of_fields({"a": 1}, {}, {"a": 2, "b": "x"}), "b") == [None, None, "x"]


@pytest.mark.parametrize(
    "values",
    [
        [1, "one", None],
        [True, 2],
        [[1], "x"],
        [{"a": 1}, [1]],
        [1, 10**30],
        [2**60 + 1, 0.5],
        [{"a": 1}, {"a": "x"}],
    ],
)
def test_fields_of_differing_types_become_json_text(values: list[Any]) -> None:
    got = column(tar_of_fields(*({"field": value} for value in values)), "field")
    assert [None if text is None else json.loads(text) for text in got] == values
    assert all(isinstance(text, str) for text in got if text is not None)


@pytest.mark.parametrize("value", [{}, [{}], {"a": {"b": {}}}, "cut \ud83d", ["\ud83d"]])
def test_fields_that_parquet_cannot_hold_become_json_text(value: Any) -> None:
    assert [json.loads(text) for text in column(tar_of_fields({"field": value}), "field")] == [value]


def test_fields_of_one_type_keep_it() -> None:
    values = [{"whole": 1, "part": 0.5, "names": ["a"], "place": {"x": 1}, "yes": True, "none": None}] * 2
    for name, value in values[0].items():
        assert column(tar_of_fields(*values), name) == [value, value]
    assert column(tar_of_fields({"n": 1}, {"n": 0.5}), "n") == [1.0, 0.5]


def test_a_field_named_like_a_place_in_the_tar_does_not_overwrite_it() -> None:
    index = build_index(tar_of_fields({"key": "other", "image_offset": -1, "a": 1}), "a.tar")
    assert index.column_names.count("key") == 1
    assert index["key"].to_pylist() == ["0"]
    assert index["image_offset"].to_pylist() == [512]


def test_a_picture_is_found_under_each_extension() -> None:
    members = [(f"{extension}.{extension}", b"picture") for extension in ("jpg", "jpeg", "png", "webp", "JPEG")]
    assert build_index(make_tar(*members), "a.tar")["image_ext"].to_pylist() == ["jpg", "jpeg", "png", "webp", "jpeg"]


def test_pictures_read_by_the_index_are_those_that_pillow_wrote(storage: LocalStorage) -> None:
    write_shard(storage, "a", [Sample(key="a", image=png(seed=5), image_extension="png", fields={})])
    row = read_index(storage, "a.tar").to_pylist()[0]
    content = storage.read_range("a.tar", row["image_offset"], row["image_length"])
    assert Image.open(io.BytesIO(content)).tobytes() == pixels(seed=5).tobytes()
