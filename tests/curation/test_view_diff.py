import csv
import shutil
from pathlib import Path

import pytest
from curation_pictures import NEGATIVE, NEUTRAL, POSITIVE, photo_bytes, post_samples, write_benchmark, write_dataset

from shards.errors import UserError
from shards.view import open_view, write_view
from xmodal.cli import main
from xmodal.curation.config import ConfidenceConfig, CurateConfig, DatasetConfig, OwnConfidenceConfig, SplitConfig
from xmodal.curation.curate import curate
from xmodal.curation.view_diff import NOT_READ, OTHER_TARGET, ViewDiff, diff_text, diff_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets `one` and `two`: pictures of their own, and a copy and a near copy of others."""
    folder = tmp_path_factory.mktemp("diff")
    one = [
        *post_samples("a1", POSITIVE, photo_bytes(1)),
        *post_samples("a2", NEUTRAL, photo_bytes(2), photo_bytes(3)),
        *post_samples("a3", NEGATIVE, photo_bytes(1)),
    ]
    two = [
        *post_samples("b1", NEGATIVE, photo_bytes(3, width=480, height=360)),
        *post_samples("b2", POSITIVE, photo_bytes(5)),
    ]
    write_dataset(folder / "one", [one])
    write_dataset(folder / "two", [two])
    return folder


def view_of(folder: Path, name: str, *datasets: str, **settings) -> str:
    urls = [str(folder / dataset) for dataset in datasets]
    curate(CurateConfig(datasets=urls, view=str(folder / name), **settings))
    return str(folder / name)


def diff_of(before: str, after: str) -> ViewDiff:
    return diff_views(open_view(before), open_view(after))


def reasons(table) -> dict[str, str]:
    return {row["key"]: row["why"] for row in table.to_pylist()}


def test_each_sample_that_is_missing_is_explained_by_the_step_that_dropped_it(folder):
    before = view_of(
        folder, "before", "one", exact_duplicates=False, near_duplicates=False, split=SplitConfig(drop_leaks=False)
    )
    after = view_of(folder, "after", "one", "two", confidence=ConfidenceConfig(neutral=0.7))
    diff = diff_of(before, after)
    assert reasons(diff.removed) == {
        "a3-0": "dropped by exact duplicates",
        "a2-0": "dropped by confidence",
        "a2-1": "dropped by near duplicates",
    }
    assert reasons(diff.added) == {"b1-0": NOT_READ, "b2-0": NOT_READ}
    assert diff.num_same == 1
    back = diff_of(after, before)
    assert reasons(back.added) == reasons(diff.removed)
    assert reasons(back.removed) == reasons(diff.added)
    changed = {change.name: (change.before, change.after) for change in diff.changes}
    assert changed["recipe.near_duplicates"] == (False, True)
    assert changed["recipe.confidence.neutral"] == (0.0, 0.7)
    assert changed["recipe.split.drop_leaks"] == (False, True)
    assert changed[f"inputs.{folder / 'two'}"][0] is None
    assert {name.partition(".")[0] for name in changed} == {"recipe", "inputs", "tombstones"}
    assert "recipe.view" not in changed


def test_a_copy_that_came_further_than_another_explains_its_key(folder):
    before = view_of(folder, "before", "one")
    shutil.copytree(folder / "one", folder / "copy", dirs_exist_ok=True)
    after = view_of(folder, "after", "one", "copy", confidence=ConfidenceConfig(neutral=0.75))
    # Of each sample one copy was dropped as an exact duplicate; it is the other that the thresholds dropped.
    assert set(reasons(diff_of(before, after).removed).values()) == {"dropped by confidence"}


def test_thresholds_of_one_dataset_are_told_apart(folder):
    def recipe(negative: float) -> list[str | DatasetConfig]:
        own = DatasetConfig(dataset=str(folder / "two"), confidence=OwnConfidenceConfig(negative=negative))
        return [str(folder / "one"), own]

    before, after = (
        curate(CurateConfig(datasets=recipe(negative), view=str(folder / f"own-{negative}"))).view
        for negative in (0.1, 0.2)
    )
    (change,) = diff_of(before, after).changes
    assert change.name == "recipe.datasets[1].confidence.negative"
    assert (change.before, change.after) == (0.1, 0.2)


def test_samples_of_one_key_in_two_datasets_are_two(folder, tmp_path):
    one = write_dataset(tmp_path / "one", [post_samples("p1", POSITIVE, photo_bytes(31))])
    other = write_dataset(tmp_path / "other", [post_samples("p1", NEGATIVE, photo_bytes(32))])
    before = view_of(tmp_path, "before", "one", "other")
    after = view_of(tmp_path, "after", "one", "other", confidence=ConfidenceConfig(positive=0.95))
    assert one != other
    diff = diff_of(before, after)
    assert (diff.num_before, diff.num_after, diff.num_same) == (2, 1, 1)
    assert diff.removed.to_pylist() == [{"key": "p1-0", "why": "dropped by confidence"}]
    assert not diff.altered.num_rows


def test_a_benchmark_whose_pictures_changed_is_told(folder, tmp_path):
    benchmark = write_benchmark(tmp_path / "bench", {"x.jpg": photo_bytes(1)})
    before = view_of(folder, "before", "one", benchmarks=[benchmark])
    (tmp_path / "bench" / "images" / "x.jpg").write_bytes(photo_bytes(60))
    after = view_of(folder, "after", "one", benchmarks=[benchmark])
    diff = diff_of(before, after)
    assert [change.name for change in diff.changes] == [f"benchmarks.{benchmark}.sha256"]
    assert set(reasons(diff_of(after, before).removed).values()) == {"dropped by benchmark pictures"}


def test_a_view_does_not_differ_from_itself(folder):
    view = view_of(folder, "view", "one", "two")
    diff = diff_of(view, view)
    assert diff.num_same == diff.num_before == diff.num_after > 0
    assert not diff.changes
    assert not diff.removed.num_rows + diff.added.num_rows + diff.altered.num_rows


def test_another_split_and_another_target_are_told(folder, tmp_path):
    before = view_of(folder, "before", "two", split=SplitConfig(train=1, val=0, test=0))
    other = [
        *post_samples("b1", POSITIVE, photo_bytes(3, width=480, height=360)),
        *post_samples("b2", POSITIVE, photo_bytes(5)),
    ]
    write_dataset(tmp_path / "relabelled", [other])
    nearly_all = SplitConfig(train=1e-9, val=1, test=0)
    relabelled = view_of(tmp_path, "relabelled-view", "relabelled", split=SplitConfig(train=1, val=0, test=0))
    moved = view_of(folder, "moved", "two", split=nearly_all)
    assert reasons(diff_of(before, relabelled).altered) == {"b1-0": OTHER_TARGET}
    assert reasons(diff_of(before, moved).altered) == {"b1-0": "train → val", "b2-0": "train → val"}


def test_the_command_prints_the_reasons_and_lists_the_samples(folder, tmp_path, capsys):
    before = view_of(folder, "before", "one")
    after = view_of(folder, "after", "one", confidence=ConfidenceConfig(neutral=0.75))
    assert main(["view", "diff", before, after, "--csv", str(tmp_path / "diff.csv")]) == 0
    printed = capsys.readouterr().out
    assert printed == diff_text(diff_of(before, after)) + "\n"
    assert "recipe.confidence.neutral: 0.0 → 0.75" in printed
    assert "2  dropped by confidence" in printed
    with open(tmp_path / "diff.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == [
        ("a2-0", "removed", "dropped by confidence"),
        ("a2-1", "removed", "dropped by confidence"),
    ]


def test_a_view_that_curate_did_not_make_is_a_users_error(folder, tmp_path):
    view = open_view(view_of(folder, "view", "one"))
    datasets = [str(folder / "one")]
    write_view(
        str(tmp_path / "bare"), view.table, view.shards, datasets=datasets, description={"counts": {"splits": {}}}
    )
    with pytest.raises(UserError, match="bare: no view that `xmodal curate` made"):
        diff_of(str(tmp_path / "bare"), view.url)


@pytest.mark.parametrize(
    "arguments", [["diff", "one"], ["merge", "a", "b"], ["diff", "a", "b", "--json"], ["diff", "a", "b", "c"]]
)
def test_a_mistaken_command_line_is_told_in_two_lines(arguments, capsys):
    assert main(["view", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
