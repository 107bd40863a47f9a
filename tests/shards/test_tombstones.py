import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tars import make_tar

from shards.errors import UserError
from shards.index import build_index
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, forgotten_rows, read_tombstones, record_tombstones

NOON, LATER = "2026-01-02T12:00:00+00:00", "2026-01-02T13:00:00+00:00"
names = st.frozensets(st.text(min_size=1), max_size=5)


def tombstones(post_ids: str = "", authors: str = "") -> Tombstones:
    return Tombstones(frozenset(post_ids.split()), frozenset(authors.split()))


def files(storage: LocalStorage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (storage.folder / "tombstones").iterdir()}


def test_a_dataset_of_which_nobody_was_forgotten_has_none_and_is_not_written_to(storage: LocalStorage) -> None:
    found = read_tombstones(storage)
    assert not found
    assert found.fingerprint == ""
    assert not list(storage.folder.iterdir())


def test_what_is_recorded_adds_up_and_keeps_its_time_and_reason(storage: LocalStorage) -> None:
    record_tombstones(storage, tombstones("1 2", "ada"), reason="she asked", recorded_at=NOON)
    first = files(storage)
    record_tombstones(storage, tombstones("2 3"), reason="deleted", recorded_at=LATER)
    assert read_tombstones(storage) == tombstones("1 2 3", "ada")
    assert first.items() <= files(storage).items()
    lines = [json.loads(line) for content in files(storage).values() for line in content.splitlines()]
    assert {"author": "ada", "recorded_at": NOON, "reason": "she asked"} in lines
    assert {"post_id": "2", "recorded_at": LATER, "reason": "deleted"} in lines
    assert len(lines) == 5
    assert storage.names() == []  # no reader of the dataset's own files sees them


def test_recording_the_same_twice_makes_one_file(storage: LocalStorage) -> None:
    for _ in range(2):
        record_tombstones(storage, tombstones("1"), reason="", recorded_at=NOON)
    assert len(files(storage)) == 1


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"reason": "none"}', b'{"post_id": 5}'])
def test_a_damaged_file_is_told_and_never_taken_for_an_empty_one(storage: LocalStorage, line: bytes) -> None:
    record_tombstones(storage, tombstones("1"), reason="", recorded_at=NOON)
    (path,) = (storage.folder / "tombstones").iterdir()
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=f"{path.name}: line 2"):
        read_tombstones(storage)


@given(posts=names, authors=names)
def test_equal_sets_have_equal_fingerprints_however_they_were_recorded(
    tmp_path_factory: pytest.TempPathFactory, posts: frozenset[str], authors: frozenset[str]
) -> None:
    folder: Path = tmp_path_factory.mktemp("dataset")
    storage = LocalStorage(folder)
    for number, post in enumerate(sorted(posts)):
        record_tombstones(storage, Tombstones(frozenset([post])), reason="", recorded_at=str(number))
    if authors:
        record_tombstones(storage, Tombstones(frozenset(), authors), reason="", recorded_at=NOON)
    assert read_tombstones(storage) == Tombstones(posts, authors)
    assert read_tombstones(storage).fingerprint == Tombstones(posts, authors).fingerprint


@given(first=st.tuples(names, names), second=st.tuples(names, names))
def test_other_sets_have_other_fingerprints(first, second) -> None:
    assert (Tombstones(*first).fingerprint == Tombstones(*second).fingerprint) == (first == second)


def test_rows_are_found_by_post_and_by_author() -> None:
    index = pa.table(
        {"key": ["1-0", "1-1", "2-0", "3-0"], "post_id": ["1", "1", "2", "3"], "author": ["", "", "b", None]}
    )
    assert forgotten_rows(index, tombstones("1", "b None")).tolist() == [True, True, True, False]
    assert forgotten_rows(index.drop_columns(["author"]), tombstones("3", "b")).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "odd", ["7", "2.5", "null", '"\\ud800"', "true", "[1]", '{"a": {}}', '{"a": 1}', "1" + "0" * 400]
)
def test_an_odd_name_in_a_tar_made_elsewhere_hides_no_other(odd: str) -> None:
    fields = ['{"post_id": "abc"}', f'{{"post_id": {odd}}}', '{"post_id": 1}', '{"author": "ada", "post_id": "x"}']
    members = []
    for number, content in enumerate(fields):
        members += [(f"{number}.jpg", b"x"), (f"{number}.json", content.encode())]
    index = build_index(make_tar(*members), "made.tar")
    assert forgotten_rows(index, tombstones("abc")).tolist() == [True, False, False, False]
    assert forgotten_rows(index, tombstones("1", "ada")).tolist() == [False, False, True, True]
    if odd in ("7", "2.5"):
        assert forgotten_rows(index, tombstones(odd)).tolist() == [False, True, False, False]
