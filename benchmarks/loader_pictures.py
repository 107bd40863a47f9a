"""Made photos as JPEGs, and a dataset and view of them: what `loader.py` has all of its contenders read.

They have what decides the cost of decoding and resizing a photo: its size in pixels and in bytes, smooth and textured
regions with edges between, more energy in low frequencies than in high ones, and colour at half the resolution.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from shards.dataset import finish
from shards.index import read_index
from shards.storage import LocalStorage
from shards.view import SHARD_SCHEMA, VIEW_SCHEMA, shard_entry, write_view
from shards.writer import Sample, write_shard

NUM_DISTINCT = 32
"""Pictures of a size that differ; under other keys, each is in the dataset again and again."""
NUM_SHAPES = 12
TEXTURE_EXPONENT, SHADE_EXPONENT = 1.1, 2.2
"""Amplitude falls with this power of the frequency. That of photos falls with about the first power, but a photo's
phases are no noise, so it compresses better."""


def make_dataset(folder: Path, width: int, height: int, num_shards: int, samples_per_shard: int) -> None:
    """Write `folder/tars`, a finished dataset, and `folder/view` of all of it."""
    storage = LocalStorage(folder / "tars", create=True)
    samples = _samples(_photos(width, height))
    for number in range(num_shards):
        write_shard(storage, f"{number:06d}", [next(samples) for _ in range(samples_per_shard)])
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    _write_view(storage, folder)


def _samples(photos: list[bytes]) -> Iterator[Sample]:
    """The photos in turn, without end, each with a label and what else a post's sample has."""
    generator = np.random.default_rng(0)
    number = 0
    while True:
        fields = {
            "soft_label": generator.dirichlet([1, 1, 1]).round(6).tolist(),
            "teacher": {"name": "vader", "revision": "3.3.2"},
            "post_id": f"{number:08d}",
        }
        yield Sample(key=f"{number:08d}-0", image=photos[number % len(photos)], image_extension="jpg", fields=fields)
        number += 1


def _write_view(storage: LocalStorage, folder: Path) -> None:
    tables, shards = [], []
    for name in storage.names(".tar"):
        index = read_index(storage, name)
        tables.append(index.append_column("shard", pa.array([name] * len(index))))
        shards.append(shard_entry(0, name, index))
    rows = pa.concat_tables(tables)
    rows = rows.append_column("dataset", pa.array([0] * len(rows), pa.int32()))
    rows = rows.append_column("split", pa.array(["train"] * len(rows)))
    rows = rows.append_column("target", rows["soft_label"])
    write_view(
        str(folder / "view"),
        rows.select(VIEW_SCHEMA.names),
        pa.Table.from_pylist(shards, schema=SHARD_SCHEMA),
        datasets=[storage.url],
        description={"counts": {"splits": {"train": len(rows), "val": 0, "test": 0}}},
    )


def _photos(width: int, height: int) -> list[bytes]:
    generator = np.random.default_rng([width, height])
    return [jpeg(photo(width, height, generator), int(generator.integers(85, 91))) for _ in range(NUM_DISTINCT)]


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encoded."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def photo(width: int, height: int, generator: np.random.Generator) -> Image.Image:
    """Overlapping shapes, each of another colour and more or less textured, in uneven light."""
    colours = Image.new("RGB", (width, height), _colour(generator))
    strengths = Image.new("L", (width, height), int(generator.integers(256)))
    for _ in range(NUM_SHAPES):
        corners = _shape(width, height, generator)
        ImageDraw.Draw(colours).polygon(corners, fill=_colour(generator))
        ImageDraw.Draw(strengths).polygon(corners, fill=int(generator.integers(256)))
    strength = np.asarray(strengths, dtype=np.float32) / 255
    light = 25 * _noise(width, height, SHADE_EXPONENT, generator)
    light += 45 * strength**2 * _noise(width, height, TEXTURE_EXPONENT, generator)
    tint = [10 * _noise(width, height, SHADE_EXPONENT, generator) for _ in range(3)]
    pixels = np.asarray(colours, dtype=np.float32) + light[..., None] + np.stack(tint, axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(generator: np.random.Generator) -> tuple[int, int, int]:
    """Colours of photos are seldom pure: three channels that go together."""
    grey = generator.uniform(40, 215)
    red, green, blue = (int(value) for value in (grey + generator.normal(0, 20, 3)).clip(0, 255))
    return red, green, blue


def _shape(width: int, height: int, generator: np.random.Generator) -> list[tuple[float, float]]:
    """The corners of a star-shaped polygon somewhere in the picture."""
    angles = np.sort(generator.uniform(0, 2 * np.pi, generator.integers(3, 24)))
    radii = generator.uniform(0.05, 0.35) * width * generator.uniform(0.6, 1, len(angles))
    x, y = generator.uniform(0, width), generator.uniform(0, height)
    return list(zip((x + radii * np.cos(angles)).tolist(), (y + radii * np.sin(angles)).tolist(), strict=True))


def _noise(width: int, height: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 whose amplitude falls with a power of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    frequency[0, 0] = 1
    spectrum = np.exp(2j * np.pi * generator.random(frequency.shape)) / frequency**exponent
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)
