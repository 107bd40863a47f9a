"""Which posts have a picture that is in a benchmark: a student must not learn from what it is judged on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xmodal.benchmarks import load_benchmark
from xmodal.crawl.pictures import PILLOW_MAX_PIXELS, PictureConfig, RefusedPictureError, check_picture
from xmodal.curation.near_duplicates import is_near_any, pack_hashes

log = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BenchmarkHashes:
    """Of every benchmark picture, uint8 `(m, 32)` each."""

    sha256: np.ndarray
    pdq: np.ndarray


def benchmark_hashes(files: Sequence[str]) -> BenchmarkHashes:
    """Hash the pictures of benchmarks, whatever their size; one that cannot be decoded is logged and passed over."""
    limits = PictureConfig(min_side=1, max_side=0, max_pixels=PILLOW_MAX_PIXELS)
    sha256, pdq = [], []
    for file in files:
        benchmark = load_benchmark(file)
        for place in range(len(benchmark.paths)):
            path = benchmark.image_path(place)
            try:
                picture = check_picture(path.read_bytes(), limits)
            except RefusedPictureError as error:
                log.warning("%s: %s; it cannot be compared with the posts' pictures", path, error.reason)
                continue
            sha256.append(picture.sha256)
            pdq.append(picture.pdq)
    return BenchmarkHashes(sha256=pack_hashes(sha256), pdq=pack_hashes(pdq))


def is_in_benchmark(sha256: np.ndarray, pdq: np.ndarray, benchmark: BenchmarkHashes) -> np.ndarray:
    """Which pictures (uint8 `(n, 32)` each) are equal or nearly equal to one of a benchmark: bool `(n,)`."""
    equal = np.zeros(len(sha256), dtype=bool)
    first_words = np.ascontiguousarray(sha256).view(np.uint64)[:, 0]
    alike = np.flatnonzero(np.isin(first_words, benchmark.sha256.view(np.uint64)[:, 0]))
    known = {row.tobytes() for row in benchmark.sha256}
    equal[alike] = [sha256[place].tobytes() in known for place in alike]
    # A part at a time: the comparison takes several times the memory of what it is given.
    near = [
        is_near_any(pdq[start : start + _ROWS_AT_A_TIME], benchmark.pdq)
        for start in range(0, len(pdq), _ROWS_AT_A_TIME)
    ]
    return equal | np.concatenate([np.empty(0, dtype=bool), *near])
