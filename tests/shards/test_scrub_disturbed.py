"""Scrubs that die between any two of their steps, and scrubs that are not alone."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from made_tars import make_tar
from scrubbing import FORGOTTEN, contents, is_forgotten, let_a_minute_pass, run, visible

from shards.dataset import read_dataset, shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.scrub_marker import refuse_scrubs
from shards.storage import LocalStorage
from shards.tombstones import Tombstones


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
