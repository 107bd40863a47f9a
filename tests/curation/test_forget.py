"""`xmodal forget`: what files may name, what is recorded, what views and trainers make of it."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from curation_pictures import NEGATIVE, POSITIVE, photo_bytes, post_samples, write_dataset

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.index import read_index
from shards.storage import open_storage
from shards.tombstones import Tombstones, read_tombstones
from shards.view import View, open_view
from shards.writer import Sample
from xmodal import cli
from xmodal.curation.curate import CurateConfig, curate
from xmodal.curation.forget import forget, read_names
from xmodal.curation.forgotten import refuse_forgotten, without_forgotten


def written(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def by(author: str, samples: list[Sample]) -> list[Sample]:
    for sample in samples:
        sample.fields["author"] = author  # type: ignore[index]
    return samples


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four posts by two authors in two shards."""
    return Path(
        write_dataset(
            tmp_path_factory.mktemp("forget") / "dataset",
            [
                [*by("ada", post_samples("1", POSITIVE, photo_bytes(1), photo_bytes(2)))],
                [
                    *by("bob", post_samples("2", NEGATIVE, photo_bytes(3))),
                    *by("ada", post_samples("3", NEGATIVE, photo_bytes(4))),
                    *by("", post_samples("4", POSITIVE, photo_bytes(5))),
                ],
            ],
        )
    )


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "dataset"))


def view_of(dataset: str, folder: Path) -> View:
    curate(CurateConfig(datasets=[dataset], view=str(folder), near_duplicates=False))
    return open_view(str(folder))


def keys(dataset: str) -> list[str]:
    storage = open_storage(dataset)
    names = [shard["name"] for shard in read_dataset(storage)["shards"]]
    return [key for name in names for key in read_index(storage, name)["key"].to_pylist()]


def test_names_stand_one_a_line_plain_or_as_the_collectors_write_them(tmp_path: Path) -> None:
    deleted = ['{"id":"5","deleted_at":"2026-01-02T12:00:00+00:00"}', '{"author":"did:plc:x","deleted_at":"x"}']
    mixed = written(tmp_path / "mixed.jsonl", *deleted, '{"id": 6}', "", " 7 ", "did:plc:y/3k")
    assert read_names(mixed, "id") == {"5", "6", "7", "did:plc:y/3k"}
    authors = written(tmp_path / "authors.jsonl", *deleted, "@ada@example.org")
    assert read_names(authors, "author") == {"did:plc:x", "@ada@example.org"}


def test_a_folder_of_compressed_files_is_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deleted"
    folder.mkdir()
    for number in range(2):
        line = json.dumps({"id": str(number), "deleted_at": "x"}).encode() + b"\n"
        (folder / f"bluesky-{number}.jsonl.zst").write_bytes(zstandard.compress(line))
    (folder / ".bluesky-2.jsonl.zst.part").write_bytes(b"still growing")
    assert read_names(str(folder), "id") == {"0", "1"}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        '{"id": null}',
        '{"id": true}',
        '{"id": ["1"]}',
        '{"id": ""}',
        "1,some words",
        "1\tx",
        "123,ada,2026-01-02T00:00:00Z",
        '"123"',
        "'123'",
        '["1","2"]',
        '[{"id": "1"}]',
        "<123>",
        "x" * 201,
        "é" * 70,
    ],
)
def test_lines_that_name_nobody_are_told_and_nothing_is_recorded(dataset: str, tmp_path: Path, line: str) -> None:
    posts = written(tmp_path / "posts.txt", "1", line, "2", line)
    with pytest.raises(UserError, match=r"posts.txt: line 2: names no post, and 1 more") as told:
        forget(dataset, posts=posts, authors=None)
    assert "some words" not in str(told.value)
    assert not read_tombstones(open_storage(dataset))


def test_the_tombstones_of_another_dataset_name_posts_and_authors(dataset: str, tmp_path: Path) -> None:
    forget(dataset, posts=written(tmp_path / "p", "1", "99"), authors=written(tmp_path / "a", "ada"))
    assert read_names(f"{dataset}/tombstones", "id") == {"1", "99"}
    assert read_names(f"{dataset}/tombstones", "author") == {"ada"}


def test_an_author_may_have_a_name_longer_than_any_id(dataset: str, tmp_path: Path) -> None:
    name = "é" * 70
    forget(dataset, posts=None, authors=written(tmp_path / "authors.txt", name))
    assert read_tombstones(open_storage(dataset)).authors == {name}


def test_names_that_no_sample_has_are_counted(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posts = written(tmp_path / "posts.txt", "id", "1", "https://x.com/ada/status/2", "7.84E+17")
    authors = written(tmp_path / "authors.txt", "ada", "@ada")
    assert cli.main(["forget", dataset, "--posts", posts, "--authors", authors]) == 0
    assert "3 posts and 1 authors of those that were given" in capsys.readouterr().out
    done = forget(dataset, posts=written(tmp_path / "known.txt", "1", "2"), authors=None)
    assert (done.unmatched_posts, done.unmatched_authors) == (0, 0)


def test_a_shard_that_cannot_be_read_keeps_nobody_from_being_forgotten(dataset: str, tmp_path: Path) -> None:
    tar = Path(dataset, "000000.tar")
    tar.write_bytes(tar.read_bytes()[:700])
    Path(dataset, "000000.parquet").unlink()
    done = forget(dataset, posts=written(tmp_path / "posts.txt", "1", "2"), authors=None)
    assert read_tombstones(open_storage(dataset)).post_ids == {"1", "2"}
    assert done.samples == 1
    (why,) = done.unreadable
    assert "000000.tar: not a whole tar" in why
    with pytest.raises(UserError, match=r"000000\.tar: not a whole tar"):
        forget(dataset, posts=None, authors=None, take_out=True)


def test_bytes_that_are_no_text_and_files_that_are_cut_off_are_told(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"1\n\xe9\n")
    with pytest.raises(UserError, match="line 2"):
        forget(dataset, posts=str(tmp_path / "latin.txt"), authors=None)
    whole = zstandard.compress(b"".join(b"%d\n" % number for number in range(9999)))
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        forget(dataset, posts=str(tmp_path / "cut.jsonl.zst"), authors=None)
    for path in (written(tmp_path / "empty.txt"), str(tmp_path / "missing.txt")):
        with pytest.raises(UserError, match=path):
            forget(dataset, posts=path, authors=None)
    assert not read_tombstones(open_storage(dataset))


def test_what_is_known_is_not_recorded_again(dataset: str, tmp_path: Path) -> None:
    posts = written(tmp_path / "posts.txt", "1", "99")
    first = forget(dataset, posts=posts, authors=None, reason="asked")
    assert (first.new.post_ids, first.samples) == ({"1", "99"}, 2)
    again = forget(dataset, posts=written(tmp_path / "more.txt", "1", "2"), authors=None)
    assert (again.new.post_ids, again.all.post_ids, again.samples) == ({"2"}, {"1", "2", "99"}, 3)
    once_more = forget(dataset, posts=posts, authors=None)
    assert not once_more.new
    assert len(os.listdir(f"{dataset}/tombstones")) == 2


def test_authors_are_forgotten_with_all_of_their_posts(dataset: str, tmp_path: Path) -> None:
    done = forget(dataset, posts=None, authors=written(tmp_path / "authors.txt", "ada"), take_out=True)
    assert (done.samples, done.unknown_authors) == (3, 1)
    assert done.scrubbed is not None
    assert (done.scrubbed.samples, done.scrubbed.shards) == (3, 2)
    assert keys(dataset) == ["2-0", "4-0"]


def test_of_a_dataset_that_names_no_authors_none_can_be_forgotten(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "old", [post_samples("1", POSITIVE, photo_bytes(1))])
    with pytest.raises(UserError, match="do not say who posted them"):
        forget(dataset, posts=None, authors=written(tmp_path / "authors.txt", "ada"))
    assert not read_tombstones(open_storage(dataset))
    assert forget(dataset, posts=written(tmp_path / "posts.txt", "1"), authors=None).samples == 1


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    with pytest.raises(UserError, match="no dataset"):
        forget(str(tmp_path / "view"), posts=written(tmp_path / "posts.txt", "1"), authors=None)


def test_a_dataset_that_is_being_labelled_is_not_scrubbed_and_what_is_asked_for_is_recorded(
    dataset: str, tmp_path: Path
) -> None:
    counts = ("posts_read", "units_in_flight", "units_committed", "units_waiting", "samples", "bytes")
    status = {"state": "running", "started": 1, "updated": round(time.time()), "share_read": 1.0, "failures": {}}
    status |= dict.fromkeys(counts, 0)
    Path(dataset, "status.json").write_text(json.dumps(status))
    before = keys(dataset)
    posts = written(tmp_path / "posts.txt", "1")
    with pytest.raises(UserError, match="`xmodal label` is at work"):
        forget(dataset, posts=posts, authors=None, take_out=True)
    assert keys(dataset) == before
    assert read_tombstones(open_storage(dataset)) == Tombstones(frozenset("1"))
    # One that was just stopped has left temporary files that are too young to be told from a living writer's.
    Path(dataset, "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    with pytest.raises(UserError, match="was just stopped"):
        forget(dataset, posts=None, authors=None, take_out=True)
    Path(dataset, "status.json").write_text(json.dumps(status | {"updated": round(time.time()) - 61}))
    assert forget(dataset, posts=None, authors=None, take_out=True).samples == 2
    assert keys(dataset) == ["2-0", "3-0", "4-0"]


def test_a_view_made_before_is_refused_and_what_is_left_of_it_is_not(dataset: str, tmp_path: Path) -> None:
    view = view_of(dataset, tmp_path / "view")
    refuse_forgotten(view)
    forget(dataset, posts=written(tmp_path / "posts.txt", "99"), authors=None)
    refuse_forgotten(view)  # nothing of it was forgotten
    forget(dataset, posts=None, authors=written(tmp_path / "authors.txt", "ada"))
    with pytest.raises(UserError, match="3 of its samples are of posts that were forgotten"):
        refuse_forgotten(view)
    assert set(without_forgotten(view).table["key"].to_pylist()) == {"2-0", "4-0"}


def test_a_view_that_says_it_was_made_after_is_trusted_and_one_that_says_nothing_is_looked_into(
    dataset: str, tmp_path: Path
) -> None:
    view = view_of(dataset, tmp_path / "view")
    forget(dataset, posts=None, authors=written(tmp_path / "authors.txt", "ada"))
    mark = read_tombstones(open_storage(dataset)).fingerprint
    for known, is_trusted in (({dataset: mark}, True), ({dataset: ""}, False), ([], False), ({}, False)):
        described = replace(view, description=view.description | {"tombstones": known})
        if is_trusted:
            refuse_forgotten(described)
        else:
            with pytest.raises(UserError, match="3 of its samples"):
                refuse_forgotten(described)


def test_a_view_of_scrubbed_shards_is_refused_with_what_to_do(dataset: str, tmp_path: Path) -> None:
    view = view_of(dataset, tmp_path / "view")
    forget(dataset, posts=written(tmp_path / "posts.txt", "2"), authors=None, take_out=True)
    with pytest.raises(UserError, match=r"000001.tar: this shard of the view is not there: posts were scrubbed"):
        refuse_forgotten(view)


def test_a_view_made_between_forgetting_and_scrubbing_is_refused_once_its_shards_are_gone(
    dataset: str, tmp_path: Path
) -> None:
    forget(dataset, posts=written(tmp_path / "posts.txt", "2"), authors=None)
    view = view_of(dataset, tmp_path / "view")
    refuse_forgotten(view)
    forget(dataset, posts=None, authors=None, take_out=True)
    for look in (refuse_forgotten, without_forgotten):
        with pytest.raises(UserError, match=r"000001.tar: this shard of the view is not there: posts were scrubbed"):
            look(view)
    refuse_forgotten(view_of(dataset, tmp_path / "again"))


def test_who_is_forgotten_by_one_dataset_of_a_view_is_forgotten_by_all(dataset: str, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", [by("eve", post_samples("2", POSITIVE, photo_bytes(9)))])
    curate(CurateConfig(datasets=[dataset, other], view=str(tmp_path / "view"), near_duplicates=False))
    view = open_view(str(tmp_path / "view"))
    forget(other, posts=written(tmp_path / "posts.txt", "2"), authors=None)
    with pytest.raises(UserError, match="2 of its samples"):
        refuse_forgotten(view)


def test_the_command_says_what_it_did_and_names_nobody(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authors = written(tmp_path / "authors.txt", "ada")
    assert cli.main(["forget", "--authors", authors, "--reason", "she asked", dataset]) == 0
    assert cli.main(["forget", "--scrub", dataset]) == 0
    told = capsys.readouterr().out
    assert "authors to forget  1 (1 of them new)" in told
    assert "--scrub takes their pictures out" in told
    assert "3 samples out of 2 shards" in told
    assert "ada" not in told
    (file,) = Path(dataset, "tombstones").iterdir()
    assert json.loads(file.read_text())["reason"] == "she asked"
    assert keys(dataset) == ["2-0", "4-0"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--posts"], "--posts"),
        (["--posts", "x"], "no dataset"),
        (["tests"], "nobody to forget"),
        (["--all", "tests"], "--all: no such setting"),
        (["--scrub", "/nonexistent"], "/nonexistent: no such folder"),
    ],
)
def test_a_mistake_is_told_in_two_lines(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["forget", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert complaint in lines[0]
