"""Which posts have a picture that is in a benchmark: a student must not learn from what it is judged on."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.benchmarks import load_benchmark
from xmodal.crawl.pictures import Picture
from xmodal.curation.benchmark_pictures import read_picture
from xmodal.curation.datasets import map_in_order
from xmodal.curation.near_duplicates import is_near_any, pack_hashes

log = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BenchmarkPictures:
    """The hashes of a benchmark's pictures, uint8 `(m, 32)` each."""

    sha256: np.ndarray
    pdq: np.ndarray
    num_undecodable: int
    """Pictures that nothing can be compared with."""

    def description(self) -> dict[str, Any]:
        """For `view.json`: how many pictures, and a hash of all of theirs, whatever their order."""
        rows = sorted(row.tobytes() for row in self.sha256)
        return {
            "pictures": len(rows),
            "undecodable": self.num_undecodable,
            "sha256": hashlib.sha256(b"".join(rows)).hexdigest(),
        }


def read_benchmark(file: str) -> BenchmarkPictures:
    """Hash the pictures of a benchmark, whatever their size; what is no picture is logged and passed over."""
    benchmark = load_benchmark(file)
    paths = [benchmark.image_path(place) for place in range(len(benchmark.paths))]
    hashed = list(map_in_order(_hashed, paths, len(os.sched_getaffinity(0))))
    pictures = [picture for picture in hashed if picture is not None]
    return BenchmarkPictures(
        sha256=pack_hashes(picture.sha256 for picture in pictures),
        pdq=pack_hashes(picture.pdq for picture in pictures),
        num_undecodable=len(hashed) - len(pictures),
    )


def _hashed(path: Path) -> Picture | None:
    read = read_picture(path)
    if isinstance(read, str):
        log.warning("%s: %s; it cannot be compared with the posts' pictures", path, read)
        return None
    return read[1]


def is_in_benchmarks(sha256: np.ndarray, pdq: np.ndarray, benchmarks: Sequence[BenchmarkPictures]) -> np.ndarray:
    """Which pictures (uint8 `(n, 32)` each) are equal or nearly equal to one of a benchmark: bool `(n,)`."""
    known_sha256 = np.concatenate([benchmark.sha256 for benchmark in benchmarks])
    known_pdq = np.concatenate([benchmark.pdq for benchmark in benchmarks])
    equal = np.zeros(len(sha256), dtype=bool)
    first_words = np.ascontiguousarray(sha256).view(np.uint64)[:, 0]
    alike = np.flatnonzero(np.isin(first_words, known_sha256.view(np.uint64)[:, 0]))
    known = {row.tobytes() for row in known_sha256}
    equal[alike] = [sha256[place].tobytes() in known for place in alike]
    # A part at a time: the comparison takes several times the memory of what it is given.
    near = [
        is_near_any(pdq[start : start + _ROWS_AT_A_TIME], known_pdq) for start in range(0, len(pdq), _ROWS_AT_A_TIME)
    ]
    return equal | np.concatenate([np.empty(0, dtype=bool), *near])
