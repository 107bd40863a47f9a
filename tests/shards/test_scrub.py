"""What `scrub` leaves in the shards, also after it died between any two of its steps."""

import io
import json
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from made_tars import make_tar

from shards.dataset import finish, read_dataset, shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.scrub import ScrubSummary, scrub, without_samples
from shards.scrub_marker import refuse_scrubs
from shards.storage import LocalStorage
from shards.tombstones import Tombstones
from shards.writer import write_shard

FORGOTTEN = Tombstones(frozenset(["post0000", "post0010", "post0011", "lost1"]))
"""Of the first shard one, of the second two of its three, and a failure of it; the others have none of them."""


def describe(index: Any) -> dict[str, Any]:
    return {"labels": index.num_rows}


def nobody_writes() -> None:
    """What `scrub` asks where no other writer is there."""


def run(
    storage: LocalStorage, tombstones: Tombstones = FORGOTTEN, refuse_writers: Callable[[], None] = nobody_writes
) -> ScrubSummary:
    return scrub(storage, tombstones, describe, refuse_writers=refuse_writers, leftover_age_seconds=3600)


def let_a_minute_pass(folder: Path) -> None:
    """For the markers of those who died."""
    for marker in folder.glob("scrub-*.json"):
        marker.write_text(json.dumps({"updated": time.time() - 61}))


def members(storage: LocalStorage, names: list[str]) -> list[tuple[str, bytes]]:
    """Every member of some tars: header and all, as it lies there."""
    found = []
    for name in names:
        tar = storage.read(name)
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            found += [(member.name, tar[member.offset : archive.offset]) for member in archive]
    return found


def visible(storage: LocalStorage) -> list[str]:
    """The keys that a reader of `dataset.json` sees."""
    names = [shard["name"] for shard in read_dataset(storage)["shards"]]
    return [key for name in names for key in read_index(storage, name, keep=False)["key"].to_pylist()]


def is_forgotten(member: str) -> bool:
    return member.partition("-")[0] in FORGOTTEN.post_ids


def contents(storage: LocalStorage) -> dict[str, bytes]:
    """All files, the hidden ones too."""
    return {path.name: path.read_bytes() for path in storage.folder.iterdir() if path.is_file()}


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


class _Dies(LocalStorage):
    """Dies at the `nth` of the steps that others can see."""

    def __init__(self, folder: Path, nth: int) -> None:
        super().__init__(folder)
        self.left = nth

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def commit(self, temporary: Path, name: str) -> bool:
        self._step()
        return super().commit(temporary, name)

    def replace(self, name: str, content: bytes) -> None:
        self._step()
        super().replace(name, content)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)

    def discard(self, temporary: Path) -> None:
        """A process that was killed tidies nothing up."""
        if self.left >= 0:
            super().discard(temporary)


def test_wherever_it_dies_each_sample_stays_visible_once_and_another_run_ends_the_same(
    finished_dataset: Path, tmp_path: Path
) -> None:
    undisturbed = LocalStorage(shutil.copytree(finished_dataset, tmp_path / "undisturbed"))
    (undisturbed.folder / "recipe.json").write_text("{}")
    all_keys = visible(undisturbed)
    kept = [key for key in all_keys if not is_forgotten(key)]
    run(undisturbed)
    for nth in range(1000):
        folder = Path(shutil.copytree(finished_dataset, tmp_path / f"dies-{nth}"))
        (folder / "recipe.json").write_text("{}")
        died = False
        try:
            run(_Dies(folder, nth))
        except KeyboardInterrupt:
            died = True
        storage = LocalStorage(folder)
        seen = Counter(visible(storage))
        assert seen in (Counter(all_keys), Counter(kept)), nth
        # Also to those who go by the names of the tars, and to who finishes the dataset now.
        assert (
            Counter(kept)
            <= Counter(
                key for name in shard_names(storage) for key in read_index(storage, name, keep=False)["key"].to_pylist()
            )
            <= Counter(all_keys)
        ), nth
        if not died:
            break
        let_a_minute_pass(folder)
        run(storage)
        assert contents(storage) == contents(undisturbed), nth
    assert nth > 15
    assert contents(storage) == contents(undisturbed)


def test_who_loses_to_another_scrub_deletes_nothing(dataset_copy: Path) -> None:
    class Beaten(LocalStorage):
        def commit(self, temporary: Path, name: str) -> bool:
            (self.folder / name).write_bytes(make_tar(("other-0.json", b"{}")))
            return super().commit(temporary, name)

    before = {path.name for path in dataset_copy.iterdir()}
    with pytest.raises(UserError, match="another `xmodal forget --scrub`"):
        run(Beaten(dataset_copy))
    assert before <= {path.name for path in dataset_copy.iterdir()}


def consistent(storage: LocalStorage) -> list[str]:
    """The keys that a reader of `dataset.json` sees, who finds all the shards that it names and no others."""
    assert [shard["name"] for shard in read_dataset(storage)["shards"]] == storage.names(".tar")
    return visible(storage)


@pytest.mark.parametrize("moment", ["000000-scrubbed1.tar", "_info.json", "000000.tar"])
def test_of_two_scrubs_at_once_the_second_is_refused_and_the_first_ends_well(dataset_copy: Path, moment: str) -> None:
    more = Tombstones(FORGOTTEN.post_ids | {"post0001", "post0020"})
    refused = []

    class Meanwhile(LocalStorage):
        """Where, as a file is written or deleted, another scrub begins."""

        def meet(self, name: str) -> None:
            if name == moment:
                with pytest.raises(UserError, match="`xmodal forget --scrub` is at work") as told:
                    run(LocalStorage(self.folder), more)
                refused.append(told.value.what)

        def commit(self, temporary: Path, name: str) -> bool:
            self.meet(name)
            return super().commit(temporary, name)

        def replace(self, name: str, content: bytes) -> None:
            self.meet(name)
            super().replace(name, content)

        def delete(self, name: str) -> None:
            self.meet(name)
            super().delete(name)

    run(Meanwhile(dataset_copy))
    assert len(refused) == 1
    storage = LocalStorage(dataset_copy)
    assert not [key for key in consistent(storage) if is_forgotten(key)]
    run(storage, more)
    assert not {"post0001-0", "post0020-0"} & set(consistent(storage))
    assert not list(dataset_copy.glob("scrub-*"))


@pytest.mark.parametrize(
    "moment",
    ["commit 000001-scrubbed1.tar", "replace 000000-scrubbed1.parquet", "read 000000-scrubbed1.parquet"],
    ids=["as it commits", "after it", "as the summaries are made"],
)
def test_a_scrub_that_was_held_up_for_long_gives_way_to_the_one_that_has_begun(
    dataset_copy: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Clock:
        now = 1e9

        def time(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("shards.scrub_marker.time", clock)
    monkeypatch.setattr("shards.scrub.MAX_CONCURRENT_SHARDS", 1)
    more = Tombstones(FORGOTTEN.post_ids | {"post0001", "post0020"})

    class HeldUp(LocalStorage):
        """Where one step takes so long that another scrub begins and ends meanwhile."""

        def meet(self, step: str) -> None:
            if step == moment:
                clock.now += 61
                run(LocalStorage(self.folder), more)

        def commit(self, temporary: Path, name: str) -> bool:
            self.meet(f"commit {name}")
            return super().commit(temporary, name)

        def replace(self, name: str, content: bytes) -> None:
            self.meet(f"replace {name}")
            super().replace(name, content)

        def read(self, name: str) -> bytes:
            self.meet(f"read {name}")
            return super().read(name)

    with pytest.raises(UserError, match=r"held up|just written it"):
        run(HeldUp(dataset_copy))
    storage = LocalStorage(dataset_copy)
    assert not {"post0000-0", "post0001-0", "post0020-0"} & set(consistent(storage))


def test_a_marker_that_a_killed_scrub_left_is_waited_for_and_then_removed(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    with pytest.raises(KeyboardInterrupt):
        run(_Dies(dataset_copy, 4))
    assert len(list(dataset_copy.glob("scrub-*.json"))) == 1
    with pytest.raises(UserError, match="is at work"):
        run(storage)
    let_a_minute_pass(dataset_copy)
    refuse_scrubs(storage)
    run(storage)
    assert not list(dataset_copy.glob("scrub-*"))


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_another_writer_is_looked_for_before_anything_begins_is_named_and_is_deleted(
    dataset_copy: Path, asked: int
) -> None:
    storage = LocalStorage(dataset_copy)
    before = contents(storage)
    left = asked

    def refuse() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise UserError("somebody writes", "let them end")

    with pytest.raises(UserError, match="somebody writes"):
        run(storage, refuse_writers=refuse)
    after = contents(storage)
    named = [shard["name"] for shard in read_dataset(storage)["shards"]]
    assert set(before) <= set(after)
    assert ("000000-scrubbed1.tar" in after) == (asked > 1)
    assert ("000000-scrubbed1.tar" in named) == (asked > 2)
    run(storage)
    assert not [key for key in consistent(storage) if is_forgotten(key)]


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
