"""A small dataset and a view over it, made once; and makers of samples for tests that write their own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from made_pictures import jpeg

from shards.dataset import finish, shard_names
from shards.index import read_index
from shards.storage import LocalStorage
from shards.view import SHARD_SCHEMA, VIEW_SCHEMA, View, open_view, shard_entry, write_view
from shards.writer import Sample, write_shard

MakeSamples = Callable[..., list[Sample]]

SHARD_SIZES = (9, 3, 14, 1, 8, 17)
"""Uneven, one of a single sample; 52 in all."""


@pytest.fixture(scope="session")
def make_samples() -> MakeSamples:
    """`make_samples(3, first=10)`: small pictures, all different, with what a shard says of them."""

    def make(count: int, *, first: int = 0, text: bool = False) -> list[Sample]:
        return [
            Sample(
                key=f"post{number:04d}-0",
                image=jpeg(44, 36, seed=number),
                image_extension="jpg",
                fields={
                    "soft_label": [0.25, 0.5, 0.25],
                    "label": number % 3,
                    "post_id": f"post{number:04d}",
                    "width": 44,
                    "height": 36,
                },
                text=f"words of post {number}" if text else None,
            )
            for number in range(first, first + count)
        ]

    return make


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "dataset", create=True)


@pytest.fixture(scope="session")
def finished_dataset(tmp_path_factory: pytest.TempPathFactory, make_samples: MakeSamples) -> Path:
    """A finished dataset of SHARD_SIZES, with a failure a shard. Read only: take `dataset_copy` to change it."""
    folder = tmp_path_factory.mktemp("store") / "dataset"
    storage = LocalStorage(folder, create=True)
    first = 0
    for number, size in enumerate(SHARD_SIZES):
        samples = make_samples(size, first=first, text=True)
        write_shard(storage, f"{number:06d}", samples, [{"post_id": f"lost{number}", "reason": "not_found"}])
        first += size
    finish(storage, describe_shard=lambda index: {"labels": 3}, describe_dataset=lambda shards: {"recipe": "test"})
    return folder


@pytest.fixture
def dataset_copy(finished_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_dataset, tmp_path / "dataset"))


def view_table(dataset: Path) -> pa.Table:
    """All samples of a dataset: each fifth for `val`, the others for `train`, each with a target of its own."""
    storage = LocalStorage(dataset)
    columns = ["key", "image_ext", "image_offset", "image_length", "image_crc32"]
    rows = [
        {"dataset": 0, "shard": name, **sample}
        for name in shard_names(storage)
        for sample in read_index(storage, name).select(columns).to_pylist()
    ]
    for number, row in enumerate(rows):
        row["split"] = "val" if number % 5 == 0 else "train"
        row["target"] = [number / 100, 1 - number / 100, 0.0]
    return pa.Table.from_pylist(rows, schema=VIEW_SCHEMA)


def shard_table(dataset: Path) -> pa.Table:
    """The shards of a dataset, as a view lists them."""
    storage = LocalStorage(dataset)
    entries = [shard_entry(0, name, read_index(storage, name)) for name in shard_names(storage)]
    return pa.Table.from_pylist(entries, schema=SHARD_SCHEMA)


def write_view_of(dataset: Path, folder: Path, table: pa.Table | None = None) -> View:
    table = view_table(dataset) if table is None else table
    splits = {split: table["split"].to_pylist().count(split) for split in ("train", "val", "test")}
    write_view(
        str(folder), table, shard_table(dataset), datasets=[str(dataset)], description={"counts": {"splits": splits}}
    )
    return open_view(str(folder))


@pytest.fixture(scope="session")
def view(finished_dataset: Path) -> View:
    """A view of the dataset: 41 samples to train, 11 to validate, none to test. Read only."""
    return write_view_of(finished_dataset, finished_dataset.parent / "view")


@pytest.fixture
def view_copy(dataset_copy: Path) -> View:
    """A view over a dataset of its own, both below `tmp_path`, to be damaged."""
    return write_view_of(dataset_copy, dataset_copy.parent / "view")


@pytest.fixture
def make_view() -> Callable[..., View]:
    """`make_view(dataset, folder, table)`: write a view and open it."""
    return write_view_of


@pytest.fixture
def table_of() -> Callable[[Path], pa.Table]:
    """`table_of(dataset)`: the rows that `make_view` writes if given none."""
    return view_table


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whoever asks for a name or opens a connection."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("this must not need the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
