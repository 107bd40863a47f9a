"""A finished dataset: its summaries, and that other tools read it with no help of ours."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from made_pictures import jpeg, png
from PIL import Image

from shards.dataset import finish, read_dataset, shard_names
from shards.errors import UserError
from shards.storage import TEMPORARY_PREFIX, LocalStorage
from shards.writer import Sample, write_shard

MakeSamples = Callable[..., list[Sample]]
SHARD_SIZES = (9, 3, 14, 1, 8, 17)
NUM_SAMPLES = sum(SHARD_SIZES)


def finish_plainly(storage: LocalStorage) -> None:
    finish(storage, describe_shard=lambda index: {}, describe_dataset=lambda shards: {})


def tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar"))


def picture(number: int) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(44, 36, seed=number)))


def test_a_finished_dataset_says_what_its_shards_hold(finished_dataset: Path) -> None:
    dataset = read_dataset(LocalStorage(finished_dataset))
    assert dataset["schema_version"] == 1
    assert dataset["recipe"] == "test"
    assert [shard["samples"] for shard in dataset["shards"]] == list(SHARD_SIZES)
    for shard in dataset["shards"]:
        assert shard["bytes"] == (finished_dataset / shard["name"]).stat().st_size
        assert len(shard["sha256"]) == 64
        assert shard["labels"] == 3


def test_finishing_again_changes_nothing(dataset_copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in dataset_copy.iterdir()}
    finish(
        LocalStorage(dataset_copy),
        describe_shard=lambda index: {"labels": 3},
        describe_dataset=lambda shards: {"recipe": "test"},
    )
    assert {path.name: path.read_bytes() for path in dataset_copy.iterdir()} == before


def test_finishing_takes_up_shards_that_came_later(dataset_copy: Path, make_samples: MakeSamples) -> None:
    storage = LocalStorage(dataset_copy)
    write_shard(storage, "000006", make_samples(2, first=900))
    finish_plainly(storage)
    assert [shard["samples"] for shard in read_dataset(storage)["shards"]] == [*SHARD_SIZES, 2]


def test_finishing_recovers_staged_failures_and_drops_the_leftovers_of_the_dead(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    shard = read_dataset(storage)["shards"][2]
    staged = f"{TEMPORARY_PREFIX}000002.failures-{shard['sha256']}"
    os.rename(dataset_copy / "000002.failures.jsonl", dataset_copy / staged)
    left, written = storage.new_temporary("000009.tar"), storage.new_temporary("000010.tar")
    lost = storage.new_temporary("000002.tar")
    lost_failures = dataset_copy / f"{TEMPORARY_PREFIX}000002.failures-{'0' * 64}"
    for path in (left, written, lost, lost_failures):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    finish_plainly(storage)
    # Another run on the same dataset may be writing it at this moment.
    assert written.read_bytes() == b"half"
    written.unlink()
    assert json.loads(storage.read("000002.failures.jsonl")) == {"post_id": "lost2", "reason": "not_found"}
    assert not [name for name in os.listdir(dataset_copy) if name.startswith(".")]


def test_an_empty_dataset_can_be_finished(storage: LocalStorage) -> None:
    finish_plainly(storage)
    assert read_dataset(storage)["shards"] == []
    assert not storage.exists("000002.failures.jsonl")


def test_a_dataset_that_is_not_finished_is_a_users_error(storage: LocalStorage) -> None:
    with pytest.raises(UserError, match="not finished") as caught:
        read_dataset(storage)
    assert "xmodal label" in caught.value.remedy


def test_a_dataset_of_a_later_version_is_a_users_error(dataset_copy: Path) -> None:
    storage = LocalStorage(dataset_copy)
    storage.replace("dataset.json", json.dumps(read_dataset(storage) | {"schema_version": 2}).encode())
    with pytest.raises(UserError, match="schema_version: 2 is not 1"):
        read_dataset(storage)


@pytest.mark.parametrize("shards", [None, {}, ["000000.tar"], [{"name": "000000.tar"}]], ids=str)
def test_a_dataset_that_lacks_what_it_needs_is_a_users_error(dataset_copy: Path, shards: object) -> None:
    storage = LocalStorage(dataset_copy)
    storage.replace("dataset.json", json.dumps({"schema_version": 1, "shards": shards}).encode())
    with pytest.raises(UserError, match=r"dataset\.json: shards: "):
        read_dataset(storage)


def test_vanilla_webdataset_reads_it(finished_dataset: Path) -> None:
    samples = list(wds.WebDataset(tars(finished_dataset), shardshuffle=False).decode("pil"))
    assert len(samples) == NUM_SAMPLES
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"post{number:04d}-0"
        assert sample["jpg"].tobytes() == picture(number).convert("RGB").tobytes()
        assert sample["json"]["label"] == number % 3
        assert sample["txt"] == f"words of post {number}"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_reads_it(finished_dataset: Path, tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": tars(finished_dataset)},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    samples = list(loaded)
    assert len(samples) == NUM_SAMPLES
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"post{number:04d}-0"
        assert sample["jpg"].convert("RGB").tobytes() == picture(number).convert("RGB").tobytes()
        assert sample["json"]["soft_label"] == [0.25, 0.5, 0.25]
        assert sample["txt"] == f"words of post {number}"


def test_timm_reads_it(finished_dataset: Path) -> None:
    timm_data = pytest.importorskip("timm.data")
    dataset = timm_data.create_dataset(
        "wds/", root=str(finished_dataset), split="train", is_training=False, target_key="label"
    )
    assert len(dataset) == NUM_SAMPLES
    samples = list(dataset)
    assert [target for _, target in samples] == [number % 3 for number in range(NUM_SAMPLES)]
    for number, (image, _) in enumerate(samples):
        assert image.tobytes() == picture(number).convert("RGB").tobytes()


def test_timm_reads_every_extension_that_we_write(storage: LocalStorage, make_samples: MakeSamples) -> None:
    timm_data = pytest.importorskip("timm.data")
    others = [
        Sample(key="b", image=png(), image_extension="png", fields={"label": 1}),
        Sample(key="c", image=jpeg(), image_extension="jpg", fields={"label": 2}),
    ]
    write_shard(storage, "000000", make_samples(2) + others)
    finish_plainly(storage)
    dataset = timm_data.create_dataset("wds/", root=storage.url, split="train", is_training=False, target_key="label")
    assert [target for _, target in dataset] == [0, 1, 1, 2]


def test_sizes_json_is_what_open_clip_and_webdataset_read(finished_dataset: Path) -> None:
    sizes: dict[str, Any] = json.loads((finished_dataset / "sizes.json").read_text())
    assert sizes == {f"{number:06d}.tar": size for number, size in enumerate(SHARD_SIZES)}
    # As open_clip.train.data.get_dataset_size adds them up.
    assert sum(int(sizes[os.path.basename(shard)]) for shard in tars(finished_dataset)) == NUM_SAMPLES


def test_nothing_but_shards_ends_in_tar(finished_dataset: Path) -> None:
    assert shard_names(LocalStorage(finished_dataset)) == [f"{number:06d}.tar" for number in range(len(SHARD_SIZES))]
