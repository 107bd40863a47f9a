"""Folds and given divisions: pure decisions about which picture is in which part."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from shards.errors import UserError
from xmodal.benchmarks import Benchmark, BenchmarkConfig, GivenSplit, load_benchmark, read_benchmark
from xmodal.finetuning.divisions import (
    fold_divisions,
    given_divisions,
    linked_groups,
    num_crossing,
    read_divisions,
    write_divisions,
)


def judged(scores: np.ndarray) -> Benchmark:
    config = BenchmarkConfig(name="made", images="", labels="", classes={"0": "negative", "1": "positive"})
    paths = [f"{number}.png" for number in range(len(scores))]
    return Benchmark(
        config=config, paths=paths, scores=scores, groups=np.arange(len(scores)), missing=np.zeros(len(scores), bool)
    )


def two_classes(num_pictures: int, seed: int = 0) -> Benchmark:
    return judged(np.random.default_rng(seed).permutation(np.where(np.arange(num_pictures) % 3 == 0, -1.0, 1.0)))


def hashes(num: int, seed: int = 0) -> np.ndarray:
    """Far from each other."""
    return np.random.default_rng(seed).integers(0, 256, (num, 32), dtype=np.uint8)


def test_without_duplicates_the_folds_are_those_of_the_papers_script():
    benchmark = two_classes(101)
    groups = linked_groups(benchmark.groups, hashes(101), np.arange(101))
    divisions = fold_divisions(benchmark, groups, np.ones(101, bool), num_folds=5, seed=42)
    theirs = StratifiedKFold(n_splits=5, shuffle=True, random_state=42).split(np.zeros(101), benchmark.scores > 0)
    assert divisions.names == ["fold-1", "fold-2", "fold-3", "fold-4", "fold-5"]
    for parts, (train, test) in zip(divisions.parts, theirs, strict=True):
        assert np.flatnonzero(parts == "test").tolist() == test.tolist()
        assert np.flatnonzero(parts == "train").tolist() == train.tolist()


@given(seed=st.integers(0, 10**6), num_pictures=st.integers(60, 200), num_folds=st.integers(2, 6))
@settings(max_examples=50)
def test_duplicates_are_never_across_folds_and_every_picture_is_held_out_once(seed, num_pictures, num_folds):
    generator = np.random.default_rng(seed)
    benchmark = two_classes(num_pictures, seed)
    groups = generator.integers(0, num_pictures // 2, num_pictures)
    is_decodable = generator.random(num_pictures) < 0.95
    divisions = fold_divisions(benchmark, groups, is_decodable, num_folds=num_folds, seed=42)
    assert ((divisions.parts == "test").sum(axis=0) == is_decodable).all()
    assert ((divisions.parts == "train").sum(axis=0) == is_decodable * (num_folds - 1)).all()
    for parts in divisions.parts:
        assert num_crossing(groups, parts) == 0


def test_pictures_are_linked_by_judgement_and_by_hash_and_over_several_steps():
    packed = hashes(5)
    packed[3] = packed[1]
    packed[3, 0] ^= 0b111  # three bits
    # 0 and 1 share a judgement, 1 and 3 are near, so are 2 and 5 by judgement; 4 cannot be decoded.
    groups = linked_groups(np.array([7, 7, 8, 1, 2, 8]), packed, np.array([0, 1, 2, 3, 5]))
    assert groups[0] == groups[1] == groups[3]
    assert groups[2] == groups[5]
    assert len(np.unique(groups)) == 3


def test_a_class_with_fewer_pictures_than_folds_is_told():
    benchmark = judged(np.array([1.0] * 20 + [-1.0] * 6))
    groups = np.arange(26)
    with pytest.raises(UserError, match="6 negative pictures, 6 without their duplicates, are fewer than the 7 folds"):
        fold_divisions(benchmark, groups, np.ones(26, bool), num_folds=7, seed=42)
    groups[20:24] = 20
    with pytest.raises(UserError, match="6 negative pictures, 3 without") as caught:
        fold_divisions(benchmark, groups, np.ones(26, bool), num_folds=5, seed=42)
    assert caught.value.remedy == "give --num_folds 3"
    with pytest.raises(UserError, match="0 negative pictures"):
        fold_divisions(judged(np.ones(20)), np.arange(20), np.ones(20, bool), num_folds=5, seed=42)


def test_given_divisions_are_as_their_tables_say_and_what_cannot_be_decoded_is_in_none(bright):
    benchmark = load_benchmark(str(bright))
    is_decodable = np.array([not path.startswith("damaged") for path in benchmark.paths])
    groups = linked_groups(benchmark.groups, hashes(40), np.arange(40))
    divisions = given_divisions(benchmark, groups, is_decodable, str(bright))
    assert divisions.names == ["split-1", "split-2"]
    first = divisions.parts[0]
    assert [(first == part).sum() for part in ("train", "val", "test", "")] == [24, 6, 9, 1]
    assert first[:24].tolist() == ["train"] * 24
    assert num_crossing(groups, first) == 2  # pictures 28 and 30 share a judgement, 29 and 31 another


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("0-0a.png,1", "0-0a.png: is not in the benchmark's own table, or of another class there"),
        ("new.png,1", "new.png: is not in the benchmark's own table"),
        ("1-0b.png,1", "1-0b.png: is in another row of this division too"),
    ],
)
def test_a_division_that_is_none_is_told(bright, tmp_path, row, complaint):
    benchmark = load_benchmark(str(bright))
    (tmp_path / "val.csv").write_text(f"path,class\n{row}\n")
    split = replace(benchmark.config.splits[0], val=str(tmp_path / "val.csv"))
    benchmark = replace(benchmark, config=replace(benchmark.config, splits=[split]))
    with pytest.raises(UserError, match=complaint):
        given_divisions(benchmark, np.arange(40), np.ones(40, bool), str(bright))


def test_rows_of_pictures_without_a_sign_are_passed_over_in_divisions_of_scores(tmp_path):
    scores = {"a.png": -2, "b.png": 0.5, "c.png": 0, "d.png": 3, "e.png": 0}

    def write(name: str, rows: dict[str, float]) -> str:
        (tmp_path / name).write_text("".join(["path,score\n", *(f"{path},{score}\n" for path, score in rows.items())]))
        return str(tmp_path / name)

    parts = {"train": ("a.png", "b.png", "c.png"), "val": ("e.png",), "test": ("d.png",)}
    split = GivenSplit(**{part: write(part, {path: scores[path] for path in paths}) for part, paths in parts.items()})
    config = BenchmarkConfig(name="made", images="", labels=write("table", scores), splits=[split])
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(asdict(config)))
    whole = read_benchmark(str(tmp_path / "made.yaml"))
    signed = whole.subset(np.flatnonzero(whole.scores != 0))  # as fine-tuning takes it
    divisions = given_divisions(signed, np.arange(3), np.ones(3, bool), "made.yaml")
    assert divisions.parts.tolist() == [["train", "train", "test"]]
    write("val", {"b.png": 0})
    with pytest.raises(UserError, match=r"b\.png: is not in the benchmark's own table, or of another class there"):
        given_divisions(signed, np.arange(3), np.ones(3, bool), "made.yaml")


def test_a_part_that_is_left_with_nothing_is_told(bright):
    benchmark = load_benchmark(str(bright))
    is_decodable = np.array([number % 2 == 1 or number >= 24 for number in range(40)])
    with pytest.raises(UserError, match="split-1: no negative picture is left to train on"):
        given_divisions(benchmark, np.arange(40), is_decodable, str(bright))
    with pytest.raises(UserError, match="split-1: no picture is left to test on"):
        given_divisions(benchmark, np.arange(40), np.arange(40) < 30, str(bright))


def test_divisions_are_read_as_they_were_written_and_of_no_other_table(tmp_path):
    benchmark = two_classes(40)
    divisions = fold_divisions(benchmark, np.arange(40) // 2, np.arange(40) > 3, num_folds=3, seed=1)
    write_divisions(tmp_path, benchmark, divisions)
    again = read_divisions(tmp_path, benchmark)
    assert again.names == divisions.names
    for name in ("parts", "groups", "is_decodable"):
        assert (getattr(again, name) == getattr(divisions, name)).all()
    with pytest.raises(UserError, match="not those of made any more"):
        read_divisions(tmp_path, replace(benchmark, scores=-benchmark.scores))
