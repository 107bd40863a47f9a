"""What `scrub` leaves in the shards."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from made_tars import make_tar
from scrubbing import FORGOTTEN, contents, describe, is_forgotten, members, run

from shards.dataset import finish, read_dataset, shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.scrub import ScrubSummary, without_samples
from shards.storage import LocalStorage
from shards.tombstones import Tombstones
from shards.writer import write_shard


def test_only_the_samples_of_forgotten_posts_are_gone(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    before = members(storage, shard_names(storage))
    untouched = {name: content for name, content in contents(storage).items() if name.startswith(("000002", "000003"))}
    done = run(storage)
    assert (done.samples, done.shards) == (3, 2)
    assert storage.names(".tar") == shard_names(storage)
    assert storage.names(".tar")[:2] == ["000000-scrubbed1.tar", "000001-scrubbed1.tar"]
    after = members(storage, shard_names(storage))
    assert after == [member for member in before if not is_forgotten(member[0])]
    assert untouched.items() <= contents(storage).items()
    for name, content in contents(storage).items():
        for post_id in FORGOTTEN.post_ids:
            assert post_id.encode() not in content, name
    for pattern in ("*.parquet", "*.failures.jsonl"):
        assert {path.name.split(".")[0] for path in dataset_copy.glob(pattern)} == {
            path.stem for path in dataset_copy.glob("*.tar")
        }


def test_the_summaries_name_the_new_shards_and_keep_all_else(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    before = read_dataset(storage)
    run(storage)
    after = read_dataset(storage)
    assert {key: after[key] for key in after if key != "shards"} == {
        key: before[key] for key in before if key != "shards"
    }
    assert [shard["name"] for shard in after["shards"]] == shard_names(storage)
    by_name = {shard["name"]: shard for shard in after["shards"]}
    assert by_name["000001-scrubbed1.tar"]["samples"] == by_name["000001-scrubbed1.tar"]["labels"] == 1
    assert [shard for shard in before["shards"] if shard["name"] in by_name] == [
        shard for shard in after["shards"] if "scrubbed" not in shard["name"]
    ]
    # As `finish` would have written them.
    written = {name: storage.read(name) for name in ("_info.json", "sizes.json")}
    finish(storage, describe_shard=describe, describe_dataset=lambda _: {})
    assert written == {name: storage.read(name) for name in written}


def test_a_scrubbed_shard_is_the_one_that_would_have_been_written_without_them(
    storage: LocalStorage, make_samples: Callable
) -> None:
    samples = make_samples(12, text=True)
    write_shard(storage, "000000", samples, [{"post_id": "lost1"}, {"post_id": "lost2"}])
    write_shard(storage, "expected", [one for one in samples if not is_forgotten(one.key)], [{"post_id": "lost2"}])
    run(storage)
    for ending in (".tar", ".failures.jsonl", ".parquet"):
        assert storage.read(f"000000-scrubbed1{ending}") == storage.read(f"expected{ending}")


def test_nothing_to_scrub_changes_no_file(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    before = contents(storage)
    assert run(storage, Tombstones(frozenset(["nobody"]), frozenset(["none"]))) == ScrubSummary(
        samples=0, shards=0, deleted=0
    )
    assert contents(storage) == before


def test_scrubbing_again_makes_a_third_generation_and_leaves_nothing_of_the_second(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    run(storage)
    run(storage, Tombstones(FORGOTTEN.post_ids | {"post0001"}))
    assert shard_names(storage)[:2] == ["000000-scrubbed2.tar", "000001-scrubbed1.tar"]
    assert not any(name.startswith(("000000.", "000000-scrubbed1")) for name in contents(storage))


def test_authors_are_scrubbed_with_all_of_their_posts_and_failures(storage: LocalStorage, make_samples) -> None:
    samples = make_samples(4)
    for sample, author in zip(samples, ["ada", "bob", "ada", ""], strict=True):
        sample.fields["author"] = author
    write_shard(storage, "000000", samples, [{"post_id": "x", "author": "ada"}, {"post_id": "y", "author": None}])
    run(storage, Tombstones(frozenset(), frozenset(["ada"])))
    assert read_index(storage, "000000-scrubbed1.tar")["key"].to_pylist() == ["post0001-0", "post0003-0"]
    assert json.loads(storage.read("000000-scrubbed1.failures.jsonl"))["post_id"] == "y"


def test_a_shard_of_which_all_is_forgotten_stays_as_an_empty_one(storage: LocalStorage, make_samples) -> None:
    """So that its unit is known to be done."""
    write_shard(storage, "000000", make_samples(1))
    run(storage)
    assert not read_index(storage, "000000-scrubbed1.tar").num_rows
    assert (
        list(webdataset.WebDataset(str(storage.folder / "000000-scrubbed1.tar"), shardshuffle=False, empty_check=False))
        == []
    )


def test_samples_without_a_picture_are_scrubbed_too(storage: LocalStorage) -> None:
    storage.replace("000000.tar", make_tar(("a.jpg", b"x"), ("a.json", b'{"post_id": "a"}'),
                    ("b.gif", b"y"), ("b.json", b'{"post_id": "b", "author": 7}')))  # fmt: skip
    storage.replace("000001.tar", make_tar(("c.gif", b"z"), ("c.json", b'{"post_id": "c"}'), ("d.txt", b"no JSON")))
    assert run(storage, Tombstones(frozenset(["c"]), frozenset(["7"]))).samples == 2
    left = [name for name, _ in members(storage, storage.names(".tar"))]
    assert left == ["a.jpg", "a.json", "d.txt"]


def test_of_two_posts_that_share_a_key_only_the_one_that_is_forgotten_goes(storage: LocalStorage) -> None:
    one, two = ((("a.jpg", b"x"), ("a.json", b'{"post_id": %d}' % number)) for number in (1, 2))
    between = (("c.jpg", b"y"), ("c.json", b'{"post_id": 3}'))
    storage.replace("000000.tar", make_tar(*one, *between, *two))
    run(storage, Tombstones(frozenset(["1"])))
    assert read_index(storage, "000000-scrubbed1.tar")["post_id"].to_pylist() == ["3", "2"]
    # What would be read as one afterwards, or is already, cannot be told apart: nothing is lost without a word.
    for tar in (make_tar(*one, *between, *two), make_tar(*one, *two, *between)):
        storage.delete("000000-scrubbed1.tar")
        storage.replace("000000.tar", tar)
        with pytest.raises(UserError, match=r"000000\.tar: two .*samples .*one key"):
            run(storage, Tombstones(frozenset(["3" if tar == make_tar(*one, *between, *two) else "1"])))
        assert storage.names(".tar") == ["000000.tar"]
        assert storage.read("000000.tar") == tar


@pytest.mark.parametrize("name", ["_info.json", "sizes.json"])
def test_lists_of_shards_made_elsewhere_are_told_and_never_left_with_names_of_shards_that_are_gone(
    storage: LocalStorage, name: str
) -> None:
    storage.replace("000000.tar", make_tar(("a.jpg", b"x"), ("a.json", b'{"post_id": "a"}')))
    storage.replace(name, b'{"000000.tar": 1}')
    with pytest.raises(UserError, match=f"{name}: made elsewhere"):
        run(storage, Tombstones(frozenset(["a"])))
    assert storage.names(".tar") == ["000000.tar"]
    storage.delete(name)
    assert run(storage, Tombstones(frozenset(["a"]))).samples == 1


def test_no_reader_brings_back_an_index_of_what_is_gone(dataset_copy: Path) -> None:
    """Tars are deleted first, and an index that a reader was still writing is found at the end."""
    deleted: list[str] = []

    class Read(LocalStorage):
        def delete(self, name: str) -> None:
            content = self.read(name) if name == "000000.parquet" and name not in deleted else None
            super().delete(name)
            deleted.append(name)
            if content:
                self.replace(name, content)

    run(Read(dataset_copy))
    shards = [name for name in deleted if name.startswith("00000")]
    assert [name.endswith(".tar") for name in shards] == sorted(
        [name.endswith(".tar") for name in shards], reverse=True
    )
    assert not (dataset_copy / "000000.parquet").exists()


def test_what_was_deleted_stays_deleted_if_the_power_fails_after(dataset_copy: Path) -> None:
    steps: list[str] = []

    class Synced(LocalStorage):
        def delete(self, name: str) -> None:
            super().delete(name)
            steps.append(name)

        def _sync_folder(self) -> None:
            super()._sync_folder()
            steps.append("synced")

    run(Synced(dataset_copy))
    last = max(number for number, step in enumerate(steps) if step.startswith("00000"))
    assert "synced" in steps[last:]


@pytest.mark.parametrize("name", ["000001.failures", "000001.tar", "000001-scrubbed1.failures"])
def test_what_dead_writers_left_of_earlier_generations_is_removed_whatever_its_age(
    dataset_copy: Path, name: str
) -> None:
    storage = LocalStorage(dataset_copy)
    run(storage)
    (dataset_copy / f".tmp-{name}-abc").write_text('{"post_id": "lost1"}')
    run(storage)
    assert not list(dataset_copy.glob(".tmp-*"))


names = st.text("abc", min_size=1, max_size=3)


@given(
    sizes=st.dictionaries(names, st.integers(0, 1500), max_size=6),
    dropped=st.sets(names),
    long=st.booleans(),
)
def test_all_other_members_of_any_tar_keep_their_bytes(sizes: dict[str, int], dropped: set[str], long: bool) -> None:
    prefix = "d" * 120 + "/" if long else ""  # which needs a header of its own
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_directory("folder"))
        for key, size in sizes.items():
            for ending in ("jpg", "json"):
                member = tarfile.TarInfo(f"{prefix}{key}.{ending}")
                member.size = size
                archive.addfile(member, io.BytesIO(key.encode() * size))
    tar = file.getvalue()
    scrubbed = without_samples(tar, {place for place, key in enumerate(sizes) if key in dropped})
    assert len(scrubbed) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(scrubbed)) as archive:
        left = {member.name: member.isfile() and archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    expected = {f"{prefix}{key}.{end}": key.encode() * size for key, size in sizes.items() for end in ("jpg", "json")}
    assert left == {"folder": False} | {
        name: content[: sizes[name.removeprefix(prefix).partition(".")[0]]]
        for name, content in expected.items()
        if name.removeprefix(prefix).partition(".")[0] not in dropped
    }


def _directory(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member
