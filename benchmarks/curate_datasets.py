"""Datasets for benchmarks/curate.py: index files as `xmodal label` writes them, of invented posts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from shards.index import INDEX_VERSION, write_index
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from xmodal.curation.config import ConfidenceConfig, CurateConfig

SAMPLES_PER_SHARD = 1250
"""A unit of 1,000 posts with 1.25 pictures each."""
NUM_BENCHMARK_PICTURES = 200
_FIRST_POST = 1_510_943_913_678_450_696
_POSTS_APART = 7_919_000_003
_FORGOTTEN_EVERY = 1000
"""One post in so many is forgotten."""


def recipe(folder: Path) -> CurateConfig:
    """What asks for every step."""
    return CurateConfig(
        datasets=[str(folder / "dataset")],
        view=str(folder / "view"),
        benchmarks=[str(folder / "benchmark.yaml")],
        confidence=ConfidenceConfig(negative=0.6, neutral=0.6, positive=0.5),
        balance="undersample",
        conflicts=True,
    )


def make(folder: Path, num_samples: int) -> None:
    """Write a dataset, a benchmark and tombstones; last `planted.json`, what the funnel must have after which step."""
    generator = np.random.default_rng(num_samples)
    storage = LocalStorage(folder / "dataset", create=True)
    posts = np.repeat(np.arange(num_samples), generator.choice([1, 1, 1, 1, 2], num_samples))[:num_samples]
    # A copy is one of a picture that is none: so groups have a known number, and all of a group are near one another.
    kind = generator.choice(3, num_samples, p=[0.78, 0.15, 0.07])
    kind[0] = 0
    originals = np.flatnonzero(kind == 0)
    pictures = np.where(
        kind == 0, np.arange(num_samples), originals[generator.integers(0, len(originals), num_samples)]
    )
    shards = []
    for start in range(0, num_samples, SAMPLES_PER_SHARD):
        part = slice(start, start + SAMPLES_PER_SHARD)
        name = f"{start // SAMPLES_PER_SHARD:06d}.tar"
        table, num_bytes = _index(name, start, posts[part], kind[part], pictures[part], generator)
        write_index(storage, name, table)
        with open(folder / "dataset" / name, "wb") as tar:
            tar.truncate(num_bytes)  # a hole in the file system
        sha256 = table.schema.metadata[b"tar_sha256"].decode()
        shards.append({"name": name, "samples": table.num_rows, "bytes": num_bytes, "sha256": sha256})
    storage.replace("dataset.json", json.dumps({"schema_version": 1, "shards": shards}).encode())
    forgotten = frozenset(_post_ids(np.arange(0, posts[-1] + 1, _FORGOTTEN_EVERY)).to_pylist())
    record_tombstones(storage, Tombstones(post_ids=forgotten), reason="asked", recorded_at="2022-07-01T00:00:00Z")
    _write_benchmark(folder, generator)
    planted = {"labelled": num_samples, "exact duplicates": int((kind != 1).sum()), "near duplicates": len(originals)}
    (folder / "planted.json").write_text(json.dumps(planted))


def _index(
    name: str, start: int, posts: np.ndarray, kind: np.ndarray, pictures: np.ndarray, generator: np.random.Generator
) -> tuple[pa.Table, int]:
    """The index of a shard, and how many bytes its tar has."""
    count = len(posts)
    lengths = generator.integers(20_000, 200_000, count)
    ends = np.cumsum(lengths + 2048)
    number_in_post = np.arange(count) - np.searchsorted(posts, posts)
    post_ids = _post_ids(posts)
    # A near copy has other bytes, and up to 12 other bits of 256.
    sha256 = _hashes(np.where(kind == 2, start + np.arange(count), pictures), salt=1)
    pdq = _hashes(pictures, salt=2)
    near = np.flatnonzero(kind == 2)
    for _ in range(12):
        bits = generator.integers(0, 256, len(near))
        pdq[near, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    soft_labels = generator.dirichlet([0.6, 0.9, 0.8], count)
    none = pa.nulls(count, pa.int64())
    columns = {
        "key": pc.binary_join_element_wise(post_ids, pa.array(number_in_post).cast(pa.string()), "-"),
        "image_ext": pa.repeat("jpg", count),
        "image_offset": ends - lengths,
        "image_length": lengths,
        "image_crc32": generator.integers(0, 2**32, count, dtype=np.uint32),
        "json_offset": ends - lengths - 1024,
        "json_length": np.full(count, 600),
        "txt_offset": none,
        "txt_length": none,
        "author": pa.array(generator.integers(1, 10**9, count)).cast(pa.string()),
        "created_at": pa.repeat("2022-04-04T11:34:00+00:00", count),
        "height": generator.integers(200, 2048, count),
        "lang": pa.repeat("en", count),
        "pdq": _hex(pdq),
        "post_id": post_ids,
        "sha256": _hex(sha256),
        "soft_label": pa.FixedSizeListArray.from_arrays(soft_labels.ravel(), 3).cast(pa.list_(pa.float64())),
        "source": pa.repeat("x", count),
        "teacher": pa.array([{"name": "made", "revision": "1"}] * count),
        "url": pc.binary_join_element_wise("https://pbs.example/media/", post_ids, ".jpg", ""),
        "width": generator.integers(200, 2048, count),
    }
    metadata = {
        "index_version": INDEX_VERSION,
        "tar_bytes": str(int(ends[-1]) + 10240),
        "tar_sha256": _hex(_hashes(np.array([start]), salt=3))[0].as_py(),
        "problems": "[]",
    }
    return pa.table(columns).replace_schema_metadata(metadata), int(ends[-1]) + 10240


def _post_ids(posts: np.ndarray) -> pa.StringArray:
    return pa.array(_FIRST_POST + posts * _POSTS_APART).cast(pa.string())


def _hashes(names: np.ndarray, *, salt: int) -> np.ndarray:
    """uint8 `(n, 32)`: 256 bits for each integer, those of two integers differing in about half (splitmix64)."""
    words = (names[:, np.newaxis].astype(np.uint64) * np.uint64(4) + np.arange(4, dtype=np.uint64)) * np.uint64(8)
    state = (words + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))).view(np.uint8)


def _hex(hashes: np.ndarray) -> pa.StringArray:
    text = hashes.tobytes().hex().encode()
    offsets = pa.py_buffer((np.arange(len(hashes) + 1) * 64).astype(np.int32).tobytes())
    return pa.StringArray.from_buffers(len(hashes), offsets, pa.py_buffer(text))


def _write_benchmark(folder: Path, generator: np.random.Generator) -> None:
    images = folder / "benchmark"
    images.mkdir()
    rows = ["path,score"]
    for number in range(NUM_BENCHMARK_PICTURES):
        pixels = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        pixels.resize((256, 256), Image.Resampling.BICUBIC).save(images / f"{number}.png")
        rows.append(f"{number}.png,{1 - 2 * (number % 2)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "benchmark.yaml").write_text(f"name: made\nimages: {images}\nlabels: {folder / 'labels.csv'}\n")
