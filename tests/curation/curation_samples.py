"""`Samples` for the steps, with what a test does not say made up from each sample's key."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from xmodal.curation.near_duplicates import hash_bits
from xmodal.curation.steps import Samples


def samples_of(
    keys: Sequence[str],
    *,
    datasets: Sequence[int] | None = None,
    sha256: Sequence[str] | None = None,
    hashes: Sequence[str] | None = None,
    num_pixels: Sequence[int] | None = None,
    soft_labels: Sequence[Sequence[float]] | None = None,
) -> Samples:
    """By default all are of one dataset, positive, equally large, and differ; a key is `<post id>-<media number>`."""
    return Samples(
        datasets=np.array(datasets or [0] * len(keys)),
        keys=np.array(keys),
        post_ids=np.array([key.rpartition("-")[0] for key in keys]),
        sha256=np.array(sha256 or [random_hash(f"bytes of {key}") for key in keys]),
        pdq_bits=hash_bits(hashes or [random_hash(key) for key in keys]),
        num_pixels=np.array(num_pixels or [100] * len(keys)),
        soft_labels=np.array(soft_labels or [[0.1, 0.1, 0.8]] * len(keys), dtype=np.float64),
    )


def random_hash(name: str) -> str:
    """256 bits, hex; those of two names differ in about half."""
    return hashlib.sha256(name.encode()).hexdigest()


def flipped(value: str, num_bits: int, first: int = 0) -> str:
    """A hash with `num_bits` other bits, from bit `first` on."""
    mask = ((1 << num_bits) - 1) << first
    return f"{int(value, 16) ^ mask:064x}"


def kept(samples: Samples, stays: np.ndarray) -> set[str]:
    return set(samples.keys[stays].tolist())


def permuted(samples: Samples, seed: int) -> Samples:
    order = np.random.default_rng(seed).permutation(len(samples))
    return samples.take(order)


def keeps_the_same_keys_in_any_order(samples: Samples, step: Callable[[Samples], np.ndarray]) -> bool:
    first = kept(samples, step(samples))
    return all(kept(other, step(other)) == first for other in (permuted(samples, seed) for seed in range(5)))
