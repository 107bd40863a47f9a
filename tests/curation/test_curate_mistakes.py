"""What `xmodal curate` is asked for and cannot do: told by name, before or instead of a view."""

from pathlib import Path

import pytest
from curated_posts import config_of, first_posts
from curation_pictures import POSITIVE, photo_bytes, post_samples, write_dataset

from shards.errors import UserError
from shards.storage import LocalStorage
from shards.writer import write_shard
from xmodal.config import load_config
from xmodal.curation.config import ConfidenceConfig, CurateConfig
from xmodal.curation.curate import curate


def test_a_view_that_cannot_be_written_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    config = CurateConfig(datasets=[f"{tmp_path}/none"], view=str(tmp_path / "file" / "view"))
    with pytest.raises(UserError, match=f"{tmp_path}/file is a file"):
        curate(config)


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/none: no such folder"):
        curate(CurateConfig(datasets=[f"{tmp_path}/none"], view=str(tmp_path / "view")))


def test_an_unfinished_dataset_is_named(tmp_path):
    storage = LocalStorage(tmp_path / "begun", create=True)
    write_shard(storage, "000000", post_samples("p1", POSITIVE, photo_bytes(1)))
    with pytest.raises(UserError, match=r"begun: no dataset\.json, so this dataset is not finished"):
        curate(CurateConfig(datasets=[str(tmp_path / "begun")], view=str(tmp_path / "view")))


def test_a_dataset_without_samples_is_named(tmp_path):
    dataset = write_dataset(tmp_path / "empty", [[]])
    with pytest.raises(UserError, match=r"empty.*: no samples"):
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))


def test_a_dataset_that_was_not_labelled_is_named_with_the_missing_fields(tmp_path):
    samples = post_samples("p1", POSITIVE, photo_bytes(1))
    del samples[0].fields["pdq"], samples[0].fields["soft_label"]
    dataset = write_dataset(tmp_path / "foreign", [samples])
    with pytest.raises(
        UserError, match=r"foreign/000000\.tar: samples without soft_label, .*; pdq, needed for near_duplicates"
    ):
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))


def test_a_dataset_that_was_labelled_without_hashes_is_refused(tmp_path):
    samples = [*post_samples("p1", POSITIVE, photo_bytes(1)), *post_samples("p2", POSITIVE, photo_bytes(2))]
    samples[1].fields.update(sha256="", pdq="")
    dataset = write_dataset(tmp_path / "bare", [samples])
    with pytest.raises(UserError, match=r"bare/000000\.tar: samples without sha256, .*exact") as caught:
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))
    assert "pictures.hashes" in caught.value.remedy


def test_a_sample_without_a_soft_label_among_others_is_refused(tmp_path):
    samples = [*post_samples("p1", POSITIVE, photo_bytes(1)), *post_samples("p2", POSITIVE, photo_bytes(2))]
    samples[1].fields["soft_label"] = None
    dataset = write_dataset(tmp_path / "foreign", [samples])
    with pytest.raises(UserError, match=r"foreign/000000\.tar: samples without soft_label"):
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))


def test_a_shard_that_is_gone_is_named(tmp_path):
    dataset = write_dataset(tmp_path / "one", first_posts())
    (tmp_path / "one" / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"one/000001\.tar: this shard of the dataset is not there"):
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))


def test_an_index_of_another_tar_of_the_same_size_is_not_believed(tmp_path):
    one, other = (
        write_dataset(tmp_path / name, [post_samples(name, POSITIVE, photo_bytes(1))]) for name in ("aa", "bb")
    )
    assert Path(one, "000000.tar").stat().st_size == Path(other, "000000.tar").stat().st_size
    Path(one, "000000.parquet").write_bytes(Path(other, "000000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"aa/000000\.tar: not the shard that dataset\.json was written for"):
        curate(CurateConfig(datasets=[one], view=str(tmp_path / "view")))


def test_a_recipe_that_leaves_no_sample_says_after_which_step(folder, tmp_path):
    strict = ConfidenceConfig(negative=0.99, neutral=0.99, positive=0.99)
    with pytest.raises(UserError, match="no sample is left after confidence"):
        curate(config_of(folder, tmp_path / "view", confidence=strict))
    assert not (tmp_path / "view").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("soft_label", [0.5, 0.5]),
        ("soft_label", ["a", "b", "c"]),
        ("soft_label", [5, 5, 90]),
        ("soft_label", [-3.0, 1.0, 2.5]),
        ("soft_label", [0.5, 0.3, 0.1]),
        ("sha256", "00"),
        ("sha256", 5),
        ("pdq", "x" * 64),
        ("pdq", [1, 2, 3]),
        ("width", "wide"),
    ],
)
def test_a_field_that_is_not_as_it_should_be_is_told_with_its_shard(tmp_path, field, value):
    samples = post_samples("p1", POSITIVE, photo_bytes(1))
    samples[0].fields[field] = value
    dataset = write_dataset(tmp_path / "odd", [samples])
    with pytest.raises(UserError, match=r"odd/000000\.tar: a field is not as"):
        curate(CurateConfig(datasets=[dataset], view=str(tmp_path / "view")))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--datasets", "[]"], "datasets: [] must name at least one dataset"),
        (["--datasets", "[{dataset: ''}]"], "datasets: [''] must name at least one dataset"),
        (["--datasets", "[{confidence: {}}]"], "datasets[0].dataset: not given"),
        (["--datasets", "[one, 3]"], "datasets[1]: 3 is not a section"),
        (
            ["--datasets", "[{dataset: one, confidence: {positive: 1}}]"],
            "datasets[0].confidence.positive: 1.0 is out of range [0, 1)",
        ),
        (
            ["--datasets", "[one, {dataset: one, confidence: {positive: .9}}]"],
            "datasets: ['one', 'one'] must not name one twice with different thresholds",
        ),
        (["--cap", "5"], "cap: 5 needs balance: cap"),
        (["--balance", "cap"], "cap: 0 must be at least 1"),
        (["--num_workers", "0"], "num_workers: 0 must be at least 1"),
        (["--seed", "one"], "seed: "),
        (["--balance", "over"], "balance: "),
        (["--confidence.positive", "1"], "confidence.positive: 1.0 is out of range [0, 1)"),
        (["--confidence.positive", ".nan"], "confidence.positive: nan must be a finite number"),
        (["--split.train", "0"], "split.train: 0.0 must be above 0"),
        (["--split.val", "-0.1"], "split.val: -0.1 must be at least 0"),
        (["--split.test", ".nan"], "split.test: nan must be a finite number"),
        (["--split.test", ".inf"], "split.test: inf must be a finite number"),
    ],
)
def test_a_setting_out_of_range_is_named(arguments, what):
    given = ["--datasets", "[one]", "--view", "view", *arguments]
    with pytest.raises(UserError) as caught:
        load_config(CurateConfig, given, command="xmodal curate", description="")
    assert caught.value.what.startswith(f"command line: {what}")
