"""WebDatasets of somebody else's, without a dataset.json, through curation."""

import shutil
from pathlib import Path

import pytest
from curated_posts import config_of, first_posts, split_of_keys
from curation_pictures import NEGATIVE, POSITIVE, photo_bytes, post_samples, write_dataset

from shards.errors import UserError
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from shards.view import open_view
from shards.writer import write_shard
from xmodal.curation.config import CurateConfig, SplitConfig
from xmodal.curation.curate import curate


def foreign_shards(folder: Path, *, with_hashes: bool) -> str:
    """Tars made by another tool: no dataset.json. Returns a pattern of them."""
    storage = LocalStorage(folder, create=True)
    for number in range(2):
        samples = [
            *post_samples(f"f{number}", POSITIVE, photo_bytes(40 + number)),
            *post_samples(f"g{number}", NEGATIVE, photo_bytes(50)),
        ]
        for sample in samples:
            known = {"soft_label": sample.fields["soft_label"]}
            hashes = {name: sample.fields[name] for name in ("sha256", "pdq", "post_id", "width", "height")}
            sample.fields.clear()
            sample.fields.update(known | (hashes if with_hashes else {}))
        write_shard(storage, f"{number:05d}", samples)
    return f"{folder}/{{00000..00001}}.tar"


def test_an_indexed_webdataset_of_somebody_elses_is_curated_with_others(folder, tmp_path):
    foreign = foreign_shards(tmp_path / "foreign", with_hashes=True)
    curate(config_of(folder, tmp_path / "view", datasets=[str(folder / "one"), foreign]))
    assert set(split_of_keys(tmp_path / "view")) == {"a1-0", "a2-0", "a2-1", "a3-0", "f0-0", "f1-0", "g0-0"}
    view = open_view(str(tmp_path / "view"))
    assert view.datasets[1].url == str(tmp_path / "foreign")
    row = next(row for row in view.table.to_pylist() if row["key"] == "g0-0")
    content = view.datasets[1].read_range(row["shard"], row["image_offset"], row["image_length"])
    assert content == photo_bytes(50)


def test_a_webdataset_needs_no_field_that_no_step_asks_for(tmp_path):
    foreign = foreign_shards(tmp_path / "foreign", with_hashes=False)
    bare = {
        "datasets": [foreign],
        "view": str(tmp_path / "view"),
        "exact_duplicates": False,
        "near_duplicates": False,
        "split": SplitConfig(train=1, val=0, test=0),
    }
    assert curate(CurateConfig(**bare)).splits == {"train": 4, "val": 0, "test": 0}
    for needed, steps, settings in (
        ("sha256", "exact_duplicates", {"exact_duplicates": True}),
        ("pdq", "near_duplicates", {"near_duplicates": True}),
        ("post_id", "split", {"split": SplitConfig(drop_leaks=False)}),
        ("pdq", r"split\.drop_leaks", {"split": SplitConfig()}),
        ("pdq", "conflicts", {"conflicts": True}),
    ):
        with pytest.raises(UserError, match=rf"foreign/00000\.tar: samples without .*{needed}, needed for {steps}"):
            curate(CurateConfig(**bare | settings))


def test_a_folder_of_tars_made_elsewhere_is_told_how_to_name_them(tmp_path):
    foreign_shards(tmp_path / "foreign", with_hashes=True)
    with pytest.raises(UserError, match=r"foreign: no dataset\.json") as caught:
        curate(CurateConfig(datasets=[str(tmp_path / "foreign")], view=str(tmp_path / "view")))
    assert f"{tmp_path}/foreign/{{00000..00099}}.tar" in caught.value.remedy


def test_a_tar_without_pictures_among_others_holds_no_sample_and_is_no_error(tmp_path):
    foreign_shards(tmp_path / "foreign", with_hashes=True)
    write_shard(LocalStorage(tmp_path / "foreign"), "00002", [])
    pattern = f"{tmp_path}/foreign/{{00000..00002}}.tar"
    summary = curate(CurateConfig(datasets=[pattern], view=str(tmp_path / "view"), near_duplicates=False))
    assert summary.funnel[0].samples == 4
    assert open_view(str(tmp_path / "view")).shards["shard"].to_pylist() == ["00000.tar", "00001.tar"]


def test_a_dataset_that_forgot_somebody_goes_with_one_that_knows_no_posts(folder, tmp_path):
    one = write_dataset(tmp_path / "one", first_posts())
    foreign = foreign_shards(tmp_path / "foreign", with_hashes=False)
    bare = {"exact_duplicates": False, "near_duplicates": False, "split": SplitConfig(train=1, val=0, test=0)}
    config = CurateConfig(datasets=[one, foreign], view=str(tmp_path / "view"), **bare)
    record_tombstones(LocalStorage(one), Tombstones(post_ids=frozenset({"a2"})), reason="", recorded_at="2024-01-01")
    summary = curate(config)
    assert [(step.step, step.samples) for step in summary.funnel] == [("labelled", 10), ("forgotten", 8)]
    asked = Tombstones(post_ids=frozenset({"f0"}))
    record_tombstones(LocalStorage(tmp_path / "foreign"), asked, reason="", recorded_at="2024-01-01")
    with pytest.raises(UserError, match=r"foreign/00000\.tar: samples without post_id, needed for forgotten posts"):
        curate(config)


@pytest.mark.parametrize("index", ["lost", "another tar's"])
def test_a_webdataset_without_an_index_is_told_how_to_get_one(tmp_path, index):
    foreign = foreign_shards(tmp_path / "foreign", with_hashes=True)
    (tmp_path / "foreign" / "00001.parquet").unlink()
    if index == "another tar's":
        shutil.copy(tmp_path / "foreign" / "00000.parquet", tmp_path / "foreign" / "00001.parquet")
        with open(tmp_path / "foreign" / "00001.tar", "ab") as tar:
            tar.write(bytes(10240))
    with pytest.raises(UserError, match=r"00001\.tar: has no index") as caught:
        curate(CurateConfig(datasets=[foreign], view=str(tmp_path / "view")))
    assert caught.value.remedy == f"run `xmodal shards index {tmp_path}/foreign`"


def test_a_shard_that_a_pattern_names_and_that_is_not_there_is_told(tmp_path):
    foreign_shards(tmp_path / "foreign", with_hashes=True)
    pattern = f"{tmp_path}/foreign/{{00000..00002}}.tar"
    with pytest.raises(UserError, match=r"00002\.tar: this shard of the dataset is not there"):
        curate(CurateConfig(datasets=[pattern], view=str(tmp_path / "view")))
