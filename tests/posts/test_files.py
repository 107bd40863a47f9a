import hashlib

import pytest

from shards.errors import UserError
from xmodal.posts.files import ending_of, find_files, fingerprint, short_names


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.csv.gz", "c.parquet", "notes.txt", "cursor.json", "d.jsonl.part", "deep/e.jsonl.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "z.jsonl").mkdir()
    return tmp_path


def names(folder, posts: str) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in find_files(f"{folder}/{posts}")]


def test_a_file_a_folder_and_a_pattern_name_their_files_sorted(folder):
    assert names(folder, "notes.txt") == ["notes.txt"]
    assert names(folder, "") == ["a.csv.gz", "b.jsonl", "c.parquet"]
    assert names(folder, "*.json*") == ["b.jsonl", "cursor.json", "d.jsonl.part"]
    assert names(folder, "**/*.jsonl*") == ["b.jsonl", "d.jsonl.part", "deep/e.jsonl.zst"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    (folder / "posts[1].jsonl").touch()
    assert names(folder, "posts[1].jsonl") == ["posts[1].jsonl"]


@pytest.mark.parametrize("posts", ["none.jsonl", "none*", "empty"])
def test_what_names_no_file_is_an_error(folder, posts):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"no such file|a folder without posts") as caught:
        find_files(str(folder / posts))
    assert posts in caught.value.what


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        *[(f"posts{ending}", ending) for ending in (".jsonl", ".json", ".csv", ".parquet")],
        *[(f"posts.{kind}{packed}", f".{kind}") for kind in ("jsonl", "json", "csv") for packed in (".gz", ".zst")],
        *[(name, "") for name in ("posts.parquet.gz", "posts.txt", "posts", "jsonl", "posts.gz", "posts.jsonl.bz2")],
    ],
)
def test_the_ending_is_that_below_the_compression(name, ending):
    assert ending_of(f"some.csv/{name}") == ending


def test_short_names_are_the_same_wherever_the_folder_is(tmp_path):
    files = ["b.jsonl", "deep/a.jsonl"]
    assert short_names([f"{tmp_path}/{name}" for name in files]) == {f"{tmp_path}/{name}": name for name in files}
    assert short_names([f"{tmp_path}/deep/a.jsonl"]) == {f"{tmp_path}/deep/a.jsonl": "a.jsonl"}


def test_the_fingerprint_is_that_of_the_bytes_and_of_several_that_of_theirs_in_order(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"a")
    other.write_bytes(b"b")
    of_one, of_other = (hashlib.sha256(content).hexdigest() for content in (b"a", b"b"))
    assert fingerprint([str(one)]) == of_one
    assert fingerprint([str(one), str(other)]) == hashlib.sha256(f"{of_one}\n{of_other}".encode()).hexdigest()
    assert fingerprint([str(other), str(one)]) != fingerprint([str(one), str(other)])
