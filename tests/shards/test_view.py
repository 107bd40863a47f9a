"""A view: its fingerprint speaks of its rows alone, and a reader sees the whole old or the whole new one."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.storage import LocalStorage
from shards.view import (
    SHARD_SCHEMA,
    VIEW_SCHEMA,
    View,
    ViewWriter,
    fingerprint,
    open_view,
    read_beside,
    target_array,
    write_view,
)

MakeView = Callable[..., View]
TableOf = Callable[[Path], pa.Table]


@pytest.fixture
def table(finished_dataset: Path, table_of: TableOf) -> pa.Table:
    return table_of(finished_dataset)


@pytest.fixture
def shards(view: View) -> pa.Table:
    return view.shards


def permuted(table: pa.Table, seed: int) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(table.num_rows))


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def test_a_view_opens_with_the_rows_that_were_written(view: View, table: pa.Table) -> None:
    assert view.table.schema == VIEW_SCHEMA
    assert view.table.sort_by("key").equals(table.sort_by("key"))
    assert view.description["counts"]["splits"] == {"train": 41, "val": 11, "test": 0}


def test_a_split_holds_its_samples_shard_after_shard_in_the_shards_order(view: View) -> None:
    for name in ("train", "val"):
        part = view.split(name)
        rows = part.rows.to_pylist()
        places = [(row["dataset"], row["shard"], row["image_offset"]) for row in rows]
        assert places == sorted(places)
        assert {row["split"] for row in rows} == {name}
        shards = [(row["dataset"], row["shard"]) for row in rows]
        in_order = list(dict.fromkeys(shards))
        assert part.shard_sizes.tolist() == [shards.count(shard) for shard in in_order]
        assert part.shard_sizes.dtype == np.int64
        assert part.shards.schema == SHARD_SCHEMA
        assert list(zip(part.shards["dataset"].to_pylist(), part.shards["shard"].to_pylist(), strict=True)) == in_order
    assert len(view.split("train").rows) + len(view.split("val").rows) == 52


def test_shards_of_one_name_in_two_datasets_are_two_shards(
    finished_dataset: Path, tmp_path: Path, table: pa.Table, shards: pa.Table
) -> None:
    one = table.filter(pc.equal(table["shard"], "000000.tar"))
    both = pa.concat_tables([with_column(one, "dataset", [number] * one.num_rows) for number in (0, 1)])
    twice = pa.concat_tables([with_column(shards, "dataset", [number] * shards.num_rows) for number in (0, 1)])
    write_view(
        str(tmp_path),
        both,
        twice,
        datasets=[str(finished_dataset)] * 2,
        description={"counts": {"splits": {"train": 14}}},
    )
    assert open_view(str(tmp_path)).split("train").shard_sizes.tolist() == [7, 7]


def test_the_same_rows_in_any_order_make_the_same_view(
    finished_dataset: Path, tmp_path: Path, table: pa.Table, make_view: MakeView, view: View
) -> None:
    for seed in range(3):
        other = make_view(finished_dataset, tmp_path / str(seed), permuted(table, seed))
        assert other.fingerprint == view.fingerprint
        assert other.table.equals(view.table)


def test_the_fingerprint_does_not_depend_on_how_the_table_lies_in_memory(table: pa.Table, shards: pa.Table) -> None:
    expected = fingerprint(table, shards)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=7)
    longer = pa.concat_tables([table.slice(20), table, table.slice(0, 5)])
    for same in (
        pq.read_table(io.BytesIO(file.getvalue())).cast(VIEW_SCHEMA),
        pa.concat_tables([table.slice(0, 10), table.slice(10)]),
        longer.slice(32, 52),
        longer.slice(32, 52).replace_schema_metadata({"made": "by another tool"}),
        pa.Table.from_pylist(table.to_pylist(), schema=VIEW_SCHEMA),
    ):
        assert same.equals(table)
        assert fingerprint(same, shards) == expected


@pytest.mark.parametrize("name", ["target", "split", "key", "image_offset", "shard"])
def test_another_fingerprint_speaks_of_another_value_anywhere(table: pa.Table, shards: pa.Table, name: str) -> None:
    values = table[name].to_pylist()
    values[30] = {
        "target": [0.30, 0.70, 1e-7],
        "split": "test",
        "key": "post0030-1",
        "image_offset": values[30] and 1,
        "shard": "000009.tar",
    }[name]
    assert fingerprint(with_column(table, name, values), shards) != fingerprint(table, shards)


def test_the_fingerprint_speaks_of_the_shards_too(table: pa.Table, shards: pa.Table) -> None:
    other = with_column(shards, "sha256", ["0" * 64, *shards["sha256"].to_pylist()[1:]])
    assert fingerprint(table, other) != fingerprint(table, shards)


def test_shards_of_which_a_view_has_no_row_are_left_out(
    finished_dataset: Path, tmp_path: Path, table: pa.Table, make_view: MakeView
) -> None:
    view = make_view(finished_dataset, tmp_path, table.filter(pc.equal(table["shard"], "000004.tar")))
    [shard] = view.shards.to_pylist()
    content = (finished_dataset / "000004.tar").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert shard == {"dataset": 0, "shard": "000004.tar", "bytes": len(content), "sha256": sha256}


def test_fewer_rows_have_another_fingerprint(table: pa.Table, shards: pa.Table) -> None:
    assert fingerprint(table.slice(1), shards) != fingerprint(table, shards)
    assert fingerprint(table.slice(0, 0), shards) != fingerprint(table.slice(0, 1), shards)


def test_a_new_view_takes_the_place_of_the_old_one_and_leaves_nothing_of_it(
    view_copy: View, dataset_copy: Path, make_view: MakeView
) -> None:
    new = make_view(dataset_copy, Path(view_copy.url), view_copy.table.slice(0, 20))
    assert new.table.num_rows == 20
    assert new.fingerprint != view_copy.fingerprint
    assert sorted(os.listdir(view_copy.url)) == [
        f"{kind}-{new.fingerprint[:12]}.parquet" for kind in ("samples", "shards")
    ] + ["view.json"]


def test_writing_a_view_again_changes_nothing(view_copy: View, dataset_copy: Path, make_view: MakeView) -> None:
    before = {path.name: path.read_bytes() for path in Path(view_copy.url).iterdir()}
    make_view(dataset_copy, Path(view_copy.url))
    assert {path.name: path.read_bytes() for path in Path(view_copy.url).iterdir()} == before


def many_rows(table: pa.Table, count: int) -> pa.Table:
    """So many rows, in the order of a view."""
    rows = pa.concat_tables([table] * (count // table.num_rows + 1)).slice(0, count)
    return with_column(rows, "image_offset", list(range(count))).sort_by(
        [("shard", "ascending"), ("image_offset", "ascending")]
    )


@pytest.mark.parametrize("count", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 17) + 5])
def test_a_view_is_the_same_in_whatever_pieces_its_rows_come(
    tmp_path: Path, table: pa.Table, shards: pa.Table, count: int
) -> None:
    rows = many_rows(table, count)
    marks = set()
    for number, piece in enumerate((count or 1, 1 + count // 3, 60_000)):
        writer = ViewWriter()
        for start in range(0, count, piece):
            writer.add(rows.slice(start, piece))
        marks.add(
            writer.finish(str(tmp_path / f"{number}"), shards, datasets=[], description={"counts": {"splits": {}}})
        )
    assert marks == {fingerprint(rows, shards)}
    files = [{file.name: file.read_bytes() for file in (tmp_path / f"{number}").iterdir()} for number in range(3)]
    assert files[0] == files[1] == files[2]
    assert open_view(str(tmp_path / "0")).table.equals(rows)


def test_files_beside_a_view_come_and_go_with_it(tmp_path: Path, table: pa.Table, shards: pa.Table) -> None:
    description = {"counts": {"splits": {}}}
    for content in (b"one", b"other"):
        writer = ViewWriter()
        writer.add(table.slice(0, 5))
        beside = {"dropped": ("dropped.parquet", content), "picture": ("conflicts.svg", b"<svg/>")}
        writer.finish(str(tmp_path), shards, datasets=[], description=description, beside=beside)
        view = open_view(str(tmp_path))
        assert read_beside(view, "dropped") == content
        assert read_beside(view, "picture") == b"<svg/>"
        assert len(list(tmp_path.iterdir())) == 5
    write_view(str(tmp_path), table.slice(0, 5), shards, datasets=[], description=description)
    assert sorted(file.name.partition("-")[0] for file in tmp_path.iterdir()) == ["samples", "shards", "view.json"]
    with pytest.raises(UserError, match="dropped: names no file"):
        read_beside(open_view(str(tmp_path)), "dropped")


def test_a_document_that_names_a_file_elsewhere_beside_a_view_has_it_not_read(view_copy: View) -> None:
    victim = Path(view_copy.url).parent / "dropped-000000000000.parquet"
    victim.write_bytes(b"secret")
    for name in (f"../{victim.name}", str(victim), ["a"], "view.json"):
        view_copy.description["dropped"] = name
        with pytest.raises(UserError, match="dropped: names no file"):
            read_beside(view_copy, "dropped")


def test_what_a_killed_writer_left_is_removed_by_the_next(
    view_copy: View, dataset_copy: Path, make_view: MakeView
) -> None:
    orphan = Path(view_copy.url, "samples-0123456789ab.parquet")
    orphan.write_bytes(b"of a view that never was")
    make_view(dataset_copy, Path(view_copy.url))
    assert not orphan.exists()


DYING_WRITE = """
import os, signal, sys
from shards.storage import LocalStorage
from shards.view import open_view, write_view

folder, point = sys.argv[1:]
replace = LocalStorage.replace

def dying_replace(self, name, content):
    if name == "view.json" and point == "before view.json":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(self, name, content)
    if name == "view.json":
        os.kill(os.getpid(), signal.SIGKILL)

LocalStorage.replace = dying_replace
view = open_view(folder)
table, datasets = view.table.slice(0, 20), [view.datasets[0].url]
write_view(folder, table, view.shards, datasets=datasets, description={"counts": {"splits": {}}})
"""


@pytest.mark.parametrize(("point", "rows"), [("before view.json", 52), ("after view.json", 20)])
def test_a_writer_killed_midway_leaves_a_view_that_opens(view_copy: View, point: str, rows: int) -> None:
    ended = subprocess.run([sys.executable, "-c", DYING_WRITE, view_copy.url, point], cwd="/")
    assert ended.returncode == -signal.SIGKILL
    assert open_view(view_copy.url).table.num_rows == rows


def test_a_view_of_other_rows_than_its_json_speaks_of_is_a_users_error(view_copy: View) -> None:
    path = Path(view_copy.url, view_copy.description["samples"])
    targets = view_copy.table["target"].to_pylist()
    targets[0] = [0.0, 0.0, 1.0]
    pq.write_table(with_column(view_copy.table, "target", targets), path)
    with pytest.raises(UserError, match="its rows are not those") as caught:
        open_view(view_copy.url)
    assert "xmodal curate" in caught.value.remedy


@pytest.mark.parametrize("damage", ["cut off", "zeros", "lost", "other columns"])
def test_a_view_whose_rows_cannot_be_read_is_a_users_error(view_copy: View, damage: str) -> None:
    path = Path(view_copy.url, view_copy.description["samples"])
    content = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    if damage == "zeros":
        path.write_bytes(content[:10] + bytes(400) + content[410:])
    if damage == "lost":
        path.unlink()
    if damage == "other columns":
        pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(UserError, match=path.name) as caught:
        open_view(view_copy.url)
    assert "xmodal curate" in caught.value.remedy


def test_a_folder_that_is_no_view_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no view"):
        open_view(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        open_view(str(tmp_path / "missing"))


def test_a_view_of_another_version_is_a_users_error(view_copy: View) -> None:
    path = Path(view_copy.url, "view.json")
    path.write_text(json.dumps(view_copy.description | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema_version: 99 is not 3"):
        open_view(view_copy.url)


@pytest.mark.parametrize("key", ["fingerprint", "samples", "shards", "datasets"])
def test_a_view_that_lacks_what_it_needs_is_a_users_error(view_copy: View, key: str) -> None:
    for damaged in ({name: value for name, value in view_copy.description.items() if name != key}, {key: 5}):
        Path(view_copy.url, "view.json").write_text(json.dumps({"schema_version": 2, **damaged}))
        with pytest.raises(UserError, match=r"view\.json: \w+: missing, or no"):
            open_view(view_copy.url)


@pytest.mark.parametrize("name", ["test", "training"])
def test_an_empty_or_unknown_split_is_a_users_error_that_says_what_there_is(view: View, name: str) -> None:
    with pytest.raises(UserError, match=f"split '{name}' has no samples") as caught:
        view.split(name)
    assert "'train': 41" in caught.value.remedy


def test_a_folder_with_a_view_and_its_dataset_may_be_moved(view_copy: View, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    shutil.move(view_copy.url, moved / "view")
    shutil.move(tmp_path / "dataset", moved / "dataset")
    opened = open_view(str(moved / "view"))
    assert opened.datasets[0].url == str(moved / "dataset")
    assert opened.datasets[0].exists("000000.tar")


def test_a_view_written_with_relative_paths_opens_from_another_folder(
    dataset_copy: Path, tmp_path: Path, table: pa.Table, shards: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_view("views/a", table, shards, datasets=["dataset"], description={})
    assert open_view("views/a").datasets[0].exists("000000.tar")
    monkeypatch.chdir("/")
    assert open_view(str(tmp_path / "views" / "a")).datasets[0].url == str(dataset_copy)


def test_a_view_may_be_named_by_a_file_url(
    dataset_copy: Path, tmp_path: Path, table: pa.Table, shards: pa.Table
) -> None:
    write_view(f"file://{tmp_path}/view", table, shards, datasets=[str(dataset_copy)], description={})
    for url in (f"file://{tmp_path}/view", str(tmp_path / "view")):
        assert open_view(url).datasets[0].url == str(dataset_copy)


def test_a_view_whose_dataset_is_gone_is_a_users_error(view_copy: View, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(UserError, match="no such folder"):
        open_view(view_copy.url)


def test_a_reader_between_two_views_opens_the_new_one(
    view_copy: View, dataset_copy: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalStorage.read
    smaller = table.slice(0, 9)

    def read_and_be_overtaken(self: LocalStorage, name: str) -> bytes:
        content = read(self, name)
        if name == "view.json":
            monkeypatch.setattr(LocalStorage, "read", read)
            write_view(
                view_copy.url,
                smaller,
                view_copy.shards,
                datasets=[str(dataset_copy)],
                description={"counts": {"splits": {"train": 9}}},
            )
        return content

    monkeypatch.setattr(LocalStorage, "read", read_and_be_overtaken)
    assert open_view(view_copy.url).table.num_rows == 9


def test_parquet_files_that_are_not_the_views_own_stay(
    view_copy: View, dataset_copy: Path, make_view: MakeView
) -> None:
    mine = Path(view_copy.url) / "samples-of-mine.parquet"
    mine.write_bytes(b"mine")
    write_view(
        view_copy.url,
        view_copy.table.slice(0, 9),
        view_copy.shards,
        datasets=[str(dataset_copy)],
        description={"counts": {"splits": {"train": 9}}},
    )
    assert mine.read_bytes() == b"mine"


def test_a_document_that_names_files_elsewhere_has_them_neither_read_nor_deleted(
    view_copy: View, dataset_copy: Path, make_view: MakeView
) -> None:
    samples = f"samples-{view_copy.fingerprint[:12]}.parquet"
    victim = Path(view_copy.url).parent / samples
    shutil.copy(Path(view_copy.url, samples), victim)
    document = Path(view_copy.url, "view.json")
    for name in (f"../{samples}", str(victim), ["a"]):
        document.write_text(json.dumps(view_copy.description | {"samples": name}))
        with pytest.raises(UserError):
            open_view(view_copy.url)
        make_view(dataset_copy, Path(view_copy.url), view_copy.table.slice(0, 9))
        assert victim.exists()


@pytest.mark.parametrize("odd", [[0.5, 0.5], [], None])
def test_targets_of_other_lengths_are_a_users_error_that_names_the_sample(view: View, odd: list[float] | None) -> None:
    targets = view.table["target"].to_pylist()
    targets[30] = odd
    with pytest.raises(UserError, match=r"00000\d\.tar: post0030-0: its target has"):
        target_array(with_column(view.table, "target", targets))
