"""A scrub of the dataset of conftest.py, and what there is before and after it."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.dataset import read_dataset
from shards.index import read_index
from shards.scrub import ScrubSummary, scrub
from shards.storage import LocalStorage
from shards.tombstones import Tombstones

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
