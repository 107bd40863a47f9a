"""Shards that others made, well or badly, are streamed as ours are."""

import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from faraway import Faraway
from made_pictures import GARBAGE, jpeg
from made_tars import claiming_less_than_nothing, claiming_ten_gigabytes, make_tar

from shards.augment import AugmentConfig, eval_pixels
from shards.errors import UserError
from shards.foreign import num_at_a_time, open_shards
from shards.inspection import find_shards, measure_shards
from shards.storage import CorruptObjectError
from shards.stream import EvalStream, StreamConfig, TrainStream

CONFIG = StreamConfig(num_lanes=2, shards_per_block=2, num_workers=0)
GOOD = [(f"good{number}", jpeg(seed=number)) for number in range(6)]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """What webdataset writes: 26 samples in 3 shards, with a caption and another JSON than ours."""
    with wds.ShardWriter(str(tmp_path / "data-%03d.tar"), maxcount=10, verbose=0) as writer:
        for number in range(26):
            sample = {
                "__key__": f"{number:05d}",
                "jpg": jpeg(seed=number),
                "json": {"label": number % 2},
                "txt": "a dog",
            }
            writer.write(sample)
    return tmp_path


def by_key(view, batches) -> dict[str, torch.Tensor]:
    keys = view.split("train").rows["key"].to_pylist()
    return {
        keys[row]: pixels
        for batch in batches
        for row, pixels, is_there in zip(batch.rows.tolist(), batch.pixels, batch.mask.tolist(), strict=True)
        if is_there
    }


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("pattern", ["", "/data-{000..002}.tar"])
def test_every_sample_of_a_foreign_webdataset_is_streamed_once(foreign: Path, indexed: bool, pattern: str) -> None:
    if indexed:
        list(measure_shards(find_shards(str(foreign)), 1, keep_indexes=True))
    before = sorted(foreign.iterdir())
    view = open_shards(f"{foreign}{pattern}")
    stream = EvalStream(view, split="train", config=CONFIG, size=16, batch_size=4)
    seen = by_key(view, stream)
    assert sorted(seen) == [f"{number:05d}" for number in range(26)]
    for number in range(26):
        assert np.array_equal(seen[f"{number:05d}"].numpy(), eval_pixels(jpeg(seed=number), 16))
    assert sorted(foreign.iterdir()) == before


def test_a_foreign_webdataset_can_be_trained_on_and_resumed(foreign: Path) -> None:
    def stream() -> TrainStream:
        return TrainStream(
            open_shards(str(foreign)), config=CONFIG, size=16, augment=AugmentConfig(), global_batch_size=4
        )

    unbroken = list(stream())
    assert len(unbroken) == 6
    assert unbroken[0][0].targets.shape == (4, 0)
    resumed = stream()
    resumed.load_state_dict(stream().state_dict() | {"step": 4})
    for [one], [other] in zip(resumed, unbroken[4:], strict=True):
        assert torch.equal(one.pixels, other.pixels)


def test_targets_are_soft_labels_or_what_is_made_of_the_json(foreign: Path, finished_dataset: Path) -> None:
    def one_hot(index: pa.Table) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[index["label"].to_numpy()]

    view = open_shards(str(foreign), target=one_hot, split="val")
    [*batches] = EvalStream(view, split="val", config=CONFIG, size=16, batch_size=26)
    assert batches[0].targets.argmax(dim=1).tolist() == [number % 2 for number in range(26)]
    ours = open_shards(str(finished_dataset))
    assert ours.split("train").rows["target"][0].as_py() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("members", "damaged", "streamed", "told"),
    [
        ([("bad.jpg", GARBAGE)], {"bad"}, set(), ""),
        ([("bad.jpg", GOOD[0][1][:300])], {"bad"}, set(), ""),
        ([("bad.json", b"{}"), ("bad.txt", b"no picture")], set(), set(), "bad: has no picture, only .json, .txt"),
        ([("odd.jpg", GOOD[0][1]), ("odd.json", b'{"broken": ')], set(), {"odd"}, "odd: .json is not JSON"),
        ([("../odd.jpg", GOOD[0][1])], set(), {"../odd"}, "../odd: its member '../odd.jpg' would be unpacked outside"),
        (
            [("{tmp_path}/odd.jpg", GOOD[0][1])],
            set(),
            {"{tmp_path}/odd"},
            "{tmp_path}/odd: its member '{tmp_path}/odd.jpg' would be unpacked outside",
        ),
        ([("good0.jpg", GOOD[0][1])], set(), {"good0"}, "good0: stands in several places"),
    ],
    ids=["no picture", "cut picture", "missing", "broken json", "outside", "absolute", "twice"],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_broken_in_a_tar_is_told_by_shard_and_key_and_the_rest_is_streamed(
    tmp_path: Path,
    members: list,
    damaged: set[str],
    streamed: set[str],
    told: str,
    indexed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = [(name.format(tmp_path=tmp_path), content) for name, content in members]
    streamed, told = {key.format(tmp_path=tmp_path) for key in streamed}, told.format(tmp_path=tmp_path)
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    (folder / "a.tar").write_bytes(make_tar(*((f"{key}.jpg", content) for key, content in GOOD), *members))
    if indexed:
        list(measure_shards(find_shards(str(folder)), 1, keep_indexes=True))
    files = sorted(tmp_path.rglob("*"))
    if told:
        with pytest.raises(UserError, match=re.escape(f"{folder}/a.tar: {told}")) as caught:
            open_shards(str(folder))
        assert "on_damage='skip'" in caught.value.remedy
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        view = open_shards(str(folder), on_damage="skip")
    assert [message.startswith(f"{folder}/a.tar: {told}") for message in caplog.messages] == [True] * bool(told)
    config = StreamConfig(num_lanes=1, num_workers=0, max_damaged_share=0.5)
    with caplog.at_level(logging.WARNING):
        seen = by_key(view, EvalStream(view, split="train", config=config, size=16, batch_size=3))
    assert set(seen) == {key for key, _ in GOOD} | streamed
    assert all(f"a.tar: {key}: cannot be decoded" in caplog.text for key in damaged)
    train = TrainStream(view, config=config, size=16, augment=AugmentConfig(), global_batch_size=2)
    batches = [batch for step in train for batch in step]
    assert len(batches) == 3 + (len(streamed | damaged) + 6 > 7)
    assert {damage.key for batch in batches for damage in batch.damaged} <= damaged
    strict = StreamConfig(num_lanes=1, num_workers=0, max_damaged_share=0)
    if damaged:
        with pytest.raises(UserError, match=r"1 of \d pictures are damaged.*a\.tar: bad: cannot be decoded"):
            list(EvalStream(view, split="train", config=strict, size=16, batch_size=3))
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    "content",
    [
        make_tar(*((f"{key}.jpg", content) for key, content in GOOD))[:1500],
        claiming_ten_gigabytes("x.jpg", GOOD[0][1]),
        claiming_less_than_nothing("x.jpg", GOOD[0][1], -512),
        GARBAGE,
        b"",
    ],
    ids=["cut", "10 GB", "-512 bytes", "garbage", "empty"],
)
def test_a_tar_that_is_not_whole_stops_or_is_left_out_as_asked_for(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "b.tar").write_bytes(make_tar(*((f"{key}.jpg", picture) for key, picture in GOOD)))
    with pytest.raises(UserError, match=r"a\.tar: not a whole tar file"):
        open_shards(str(tmp_path))
    view = open_shards(str(tmp_path), on_damage="skip")
    assert "a.tar: not a whole tar file" in caplog.text
    assert sorted(by_key(view, EvalStream(view, split="train", config=CONFIG, size=16, batch_size=3))) == [
        key for key, _ in GOOD
    ]


def test_no_shards_no_such_shard_and_no_pictures_are_users_errors(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(make_tar(("x.txt", b"words")))
    for url, what in (
        (f"{tmp_path}/{{1..2}}.tar", r"2\.tar: no such shard"),
        (f"{tmp_path}/1.tar", r"1\.tar: x: has no picture, only \.txt"),
        (f"{tmp_path}/none", "no such folder"),
    ):
        with pytest.raises(UserError, match=what):
            open_shards(url)
    with pytest.raises(UserError, match="no sample with a picture"):
        open_shards(f"{tmp_path}/1.tar", on_damage="skip")


def test_a_table_of_another_tool_beside_a_tar_is_left_as_it_is(foreign: Path) -> None:
    # As img2dataset writes it.
    table = pa.table({"url": ["https://example.org/a.jpg"], "caption": ["a dog"], "status": ["success"]})
    pq.write_table(table, foreign / "data-001.parquet")
    for _ in range(2):
        assert [shard.samples for shard in measure_shards(find_shards(str(foreign)), 1, keep_indexes=True)] == [
            10,
            10,
            6,
        ]
    assert pq.read_table(foreign / "data-001.parquet").equals(table)
    assert sorted(path.name for path in foreign.glob("*.parquet")) == [
        "data-000.parquet", "data-001.index.parquet", "data-001.parquet", "data-002.parquet",
    ]  # fmt: skip
    before = (foreign / "data-001.index.parquet").stat().st_mtime_ns
    assert open_shards(str(foreign)).table.num_rows == 26
    assert (foreign / "data-001.index.parquet").stat().st_mtime_ns == before


def test_shards_of_which_some_have_no_label_are_a_users_error_that_names_one(foreign: Path) -> None:
    label = b'{"soft_label": [0.1, 0.2, 0.7]}'
    (foreign / "data-003.tar").write_bytes(make_tar(("x.jpg", GOOD[0][1]), ("x.json", label)))
    with pytest.raises(UserError, match=r"data-000\.tar: no targets: .*soft_label"):
        open_shards(str(foreign))
    for path in foreign.glob("data-00[0-2].tar"):
        path.unlink()
    (foreign / "data-004.tar").write_bytes(
        make_tar(("x.jpg", GOOD[0][1]), ("x.json", label), ("y.jpg", GOOD[1][1]), ("y.json", b"{}"))
    )
    with pytest.raises(UserError, match=r"data-004\.tar: no targets: .*y has no soft_label"):
        open_shards(str(foreign))
    with pytest.raises(UserError, match=r"data-003\.tar: targets of shape \(7, 2\), of 1 samples"):
        open_shards(f"{foreign}/data-003.tar", target=lambda index: np.zeros((7, 2), np.float32))


def test_json_that_is_nested_without_end_costs_its_fields_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar(("x.jpg", GOOD[0][1]), ("x.json", b"[" * 200_000)))
    with pytest.raises(UserError, match=r"a\.tar: x: \.json is not JSON"):
        open_shards(str(tmp_path))
    assert open_shards(str(tmp_path), on_damage="skip").table.num_rows == 1


def test_samples_without_a_label_are_told_and_left_out_where_damage_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label = b'{"soft_label": [0.1, 0.2, 0.7]}'
    pictures = [(f"{key}.jpg", picture) for key, picture in GOOD[:3]]
    (tmp_path / "a.tar").write_bytes(
        make_tar(pictures[0], ("good0.json", label), pictures[1], ("good1.json", b"{"), pictures[2])
    )
    (tmp_path / "b.tar").write_bytes(make_tar(("z.jpg", GOOD[3][1])))
    with pytest.raises(UserError, match=r"a\.tar: good1: \.json is not JSON"):
        open_shards(str(tmp_path))
    caplog.clear()
    view = open_shards(str(tmp_path), on_damage="skip")
    assert view.split("train").rows["key"].to_pylist() == ["good0"]
    broken, first, second, shard = caplog.messages
    assert broken.startswith(f"{tmp_path}/a.tar: good1: .json is not JSON")
    assert [first, second] == [f"a.tar: good{number}: has no soft_label; left out" for number in (1, 2)]
    assert shard == "b.tar: none of its samples has a soft_label; left out"

    def label_of(index: pa.Table) -> np.ndarray:
        return np.array(index["soft_label"].to_pylist(), np.float32)

    with pytest.raises(UserError, match=r"a\.tar: no targets: .*good1: \.json is not JSON"):
        open_shards(f"{tmp_path}/a.tar", target=label_of, on_damage="skip")


class _Corrupt(Faraway):
    def read(self, name: str) -> bytes:
        if name == "a.tar":
            raise CorruptObjectError("a.tar: its sha256 is not the one it was written with")
        return super().read(name)


def test_a_tar_whose_bytes_the_storage_says_are_others_stops_or_is_left_out_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(make_tar((f"{name[0]}.jpg", GOOD[0][1])))
    monkeypatch.setattr("shards.inspection.open_storage", lambda url: _Corrupt(Path(url)))
    with pytest.raises(UserError, match=r"a\.tar: its sha256"):
        open_shards(str(tmp_path))
    assert open_shards(str(tmp_path), on_damage="skip").table["key"].to_pylist() == ["b"]


@pytest.mark.parametrize(("largest", "number"), [(0, 16), (1 << 20, 16), (500 << 20, 4), (3 << 30, 1)])
def test_no_more_tars_are_read_at_a_time_than_memory_is_meant_for(largest: int, number: int) -> None:
    assert num_at_a_time(largest) == number
