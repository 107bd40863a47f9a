"""Pictures that PDQ can tell apart, and small finished datasets of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_pictures import encode
from PIL import Image

from shards.dataset import finish
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
from xmodal.crawl.pictures import PictureConfig, check_picture
from xmodal.labels import SoftLabel

NEGATIVE: SoftLabel = (0.8, 0.15, 0.05)
NEUTRAL: SoftLabel = (0.15, 0.7, 0.15)
POSITIVE: SoftLabel = (0.05, 0.05, 0.9)


def photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Colours at several scales, as in a photo, other ones for each seed: smooth pictures have unsteady hashes."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((240, 320, 3))
    for cells in (4, 9, 17, 31):
        colours = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(colours.resize((320, 240), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)


def photo_bytes(seed: int, width: int = 320, height: int = 240, quality: int = 95) -> bytes:
    return encode(photo(seed, width, height), "JPEG", quality=quality)


def post_samples(post_id: str, label: SoftLabel, *pictures: bytes) -> list[Sample]:
    """A post's pictures as `xmodal label` stores them."""
    return [_sample(post_id, number, label, picture) for number, picture in enumerate(pictures)]


def _sample(post_id: str, number: int, label: SoftLabel, content: bytes) -> Sample:
    picture = check_picture(content, PictureConfig())
    fields = {
        "soft_label": list(label),
        "teacher": {"name": "made", "revision": "1"},
        "post_id": post_id,
        "url": f"https://example.org/{post_id}/{number}",
        "sha256": picture.sha256,
        "pdq": picture.pdq,
        "width": picture.width,
        "height": picture.height,
        "lang": "en",
        "created_at": None,
        "source": "made",
    }
    return Sample(key=f"{post_id}-{number}", image=picture.content, image_extension=picture.extension, fields=fields)


def write_dataset(folder: Path, shards: Sequence[Sequence[Sample]], more: Mapping[str, Any] | None = None) -> str:
    """Write each of `shards` as a tar and finish the dataset. Returns its folder."""
    storage = LocalStorage(folder, create=True)
    for number, samples in enumerate(shards):
        write_shard(storage, f"{number:06d}", samples)
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: dict(more or {}))
    return str(folder)


def write_benchmark(folder: Path, pictures: Mapping[str, bytes], settings: str = "") -> str:
    """Write a benchmark of pictures whose scores alternate between 1 and -1. Returns its YAML file."""
    images = folder / "images"
    images.mkdir(parents=True)
    for name, content in pictures.items():
        (images / name).write_bytes(content)
    rows = [f"{name},{1 - 2 * (number % 2)}" for number, name in enumerate(pictures)]
    (folder / "labels.csv").write_text("\n".join(["path,score", *rows]) + "\n")
    file = folder / "benchmark.yaml"
    file.write_text(f"name: made\nimages: {images}\nlabels: {folder / 'labels.csv'}\n{settings}")
    return str(file)
