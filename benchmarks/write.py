"""Writing shards, in MB/s: ours with sha256, fsync, commit and index, against `webdataset.ShardWriter` without them.

    python benchmarks/write.py --quick --json write.json

Both write the same samples (a picture's bytes and a JSON each) from memory to the same disk. What they wrote is
compared first, member by member.
"""

import argparse
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import report_file
import webdataset

from shards.index import read_index
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard

SAMPLES_PER_SHARD = 1000
MEAN_BYTES = 60_000
"""Of a picture: a photo of about 600 by 450 pixels."""


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 shards a round and contender instead of 10")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", default=".", help="where to write: on the disk that is to be measured")
    arguments = parser.parse_args()
    num_shards, rounds = (2, 5) if arguments.quick else (10, 7)
    samples = make_samples()
    contenders = {"xmodal": write_ours, "webdataset": write_webdataset}
    results: dict[str, dict[str, list[float]]] = {name: {"mb_per_second": []} for name in contenders}
    with tempfile.TemporaryDirectory(prefix="write-", dir=arguments.folder) as folder:
        check_same_work(samples, contenders, Path(folder))
        for number in range(rounds):
            for name, write in contenders.items():
                results[name]["mb_per_second"].append(mb_per_second(write, samples, num_shards, Path(folder, name)))
            latest = ", ".join(f"{name} {results[name]['mb_per_second'][-1]:.0f}" for name in contenders)
            print(f"round {number + 1} of {rounds}, MB/s: {latest}", flush=True)
    pairs = zip(results["xmodal"]["mb_per_second"], results["webdataset"]["mb_per_second"], strict=True)
    ratios = {
        "xmodal / webdataset: mb_per_second": round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
    }
    work = (
        f"{num_shards} shards of {SAMPLES_PER_SHARD} samples, pictures of {MEAN_BYTES} bytes in the mean, one process"
    )
    report_file.write(report_file.report("write", work, ("webdataset", "xmodal"), results, ratios), arguments.json)


def make_samples() -> list[Sample]:
    """A shard's samples, in memory: random bytes are no worse to write than pictures."""
    generator = np.random.default_rng(0)
    return [
        Sample(
            key=f"{number:08d}-0",
            image=generator.bytes(int(generator.integers(MEAN_BYTES // 2, MEAN_BYTES * 3 // 2))),
            image_extension="jpg",
            fields={
                "soft_label": [0.1, 0.2, 0.7],
                "teacher": {"name": "vader", "revision": "3.3.2"},
                "post_id": f"{number:08d}",
                "url": f"https://example.org/media/{number:08d}.jpg",
                "sha256": "0" * 64,
                "width": 600,
                "height": 450,
            },
        )
        for number in range(SAMPLES_PER_SHARD)
    ]


def write_ours(samples: list[Sample], num_shards: int, folder: Path) -> None:
    """As `xmodal label` does, with the index made too."""
    storage = LocalStorage(folder, create=True)
    for number in range(num_shards):
        write_shard(storage, f"{number:06d}", samples)
        read_index(storage, f"{number:06d}.tar")


def write_webdataset(samples: list[Sample], num_shards: int, folder: Path) -> None:
    """The usual way."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for _ in range(num_shards):
            for sample in samples:
                writer.write({"__key__": sample.key, "jpg": sample.image, "json": dict(sample.fields)})


Write = Callable[[list[Sample], int, Path], None]


def mb_per_second(write: Write, samples: list[Sample], num_shards: int, folder: Path) -> float:
    """How fast a contender writes, from empty page caches to its last call's return."""
    os.sync()  # what the other one left to be written is not this one's to wait for
    start = time.perf_counter()
    write(samples, num_shards, folder)
    elapsed = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    shutil.rmtree(folder)
    return size / elapsed / 1e6


def check_same_work(samples: list[Sample], contenders: dict[str, Write], folder: Path) -> None:
    """Both write the same samples. Raises SystemExit if not."""
    written = []
    for name, write in contenders.items():
        write(samples, 2, folder / name)
        written.append([list(members(path)) for path in sorted((folder / name).glob("*.tar"))])
        shutil.rmtree(folder / name)
    if written[0] != written[1]:
        raise SystemExit("the contenders wrote other samples")


def members(path: Path) -> Iterator[tuple[str, object]]:
    """Name and content of each member, JSON as what it says."""
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            yield member.name, json.loads(content) if member.name.endswith(".json") else content


if __name__ == "__main__":
    main()
