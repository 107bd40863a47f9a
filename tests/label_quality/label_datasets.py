"""Small finished datasets whose labels alone matter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import made_pictures

from shards.dataset import finish
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
from xmodal.labels import SoftLabel

NEGATIVE: SoftLabel = (0.8, 0.15, 0.05)
NEUTRAL: SoftLabel = (0.15, 0.7, 0.15)
POSITIVE: SoftLabel = (0.05, 0.05, 0.9)
PICTURE = made_pictures.jpeg(16, 16)


def sample(key: str, label: SoftLabel, sha256: str = "") -> Sample:
    """A picture that nobody looks at."""
    fields = {
        "soft_label": list(label),
        "post_id": key.rpartition("-")[0],
        "sha256": sha256 or f"bytes of {key}",
        "url": f"http://example.org/images/{key}.jpg",
    }
    return Sample(key=key, image=PICTURE, image_extension="jpg", fields=fields)


def write_dataset(folder: Path, shards: Sequence[Sequence[Sample]], more: Mapping[str, Any] | None = None) -> str:
    """Write each of `shards` as a tar and finish the dataset. Returns its folder."""
    storage = LocalStorage(folder, create=True)
    for number, samples in enumerate(shards):
        write_shard(storage, f"{number:06d}", samples)
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: dict(more or {}))
    return str(folder)
