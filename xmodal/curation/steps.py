"""The steps of curation: pure functions from a table of samples to which of them stay.

Each takes `Samples` and returns a bool array `(n,)`, True for what stays. None depends on the order of the samples
beyond their keys, so that the same posts give the same view whatever the order of the files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xmodal.curation.near_duplicates import is_near_any, near_groups
from xmodal.labels import CLASSES


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the steps look at; all arrays have one entry a sample."""

    datasets: np.ndarray
    """Which of the recipe's datasets each is from, by its place."""
    keys: np.ndarray
    post_ids: np.ndarray
    sha256: np.ndarray
    pdq_bits: np.ndarray
    """float32 `(n, 256)`, see `near_duplicates.hash_bits`."""
    num_pixels: np.ndarray
    soft_labels: np.ndarray
    """float64 `(n, 3)`."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each sample; ties go to the lower id."""
        return self.soft_labels.argmax(axis=1)

    def take(self, stays: np.ndarray) -> "Samples":
        """Only those that stay."""
        return Samples(**{name: values[stays] for name, values in vars(self).items()})


def first_of_duplicates(samples: Samples) -> np.ndarray:
    """Of pictures with equal bytes the one with the smallest key stays."""
    order = np.lexsort((samples.keys, samples.sha256))
    ordered = samples.sha256[order]
    stays = np.zeros(len(samples), dtype=bool)
    stays[order] = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    return stays


def best_of_near_duplicates(samples: Samples) -> np.ndarray:
    """Of each group of near duplicates the largest picture stays; of equally large ones that with the smallest key."""
    groups = near_groups(samples.pdq_bits)
    order = np.lexsort((samples.keys, -samples.num_pixels, groups))
    ordered = groups[order]
    stays = np.zeros(len(samples), dtype=bool)
    stays[order] = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    return stays


def posts_in_benchmarks(
    samples: Samples, benchmark_sha256: Sequence[str], benchmark_pdq_bits: np.ndarray
) -> np.ndarray:
    """Ids of the posts of which some picture is equal or nearly equal to a benchmark's picture.

    To be asked of all samples, before duplicates are dropped: a post stays known by a picture that is not kept.
    """
    touched = np.isin(samples.sha256, benchmark_sha256) | is_near_any(samples.pdq_bits, benchmark_pdq_bits)
    return np.unique(samples.post_ids[touched])


def outside_posts(samples: Samples, post_ids: np.ndarray) -> np.ndarray:
    """Samples stay if their post is none of `post_ids`: all pictures of a post show one thing and share its text."""
    return ~np.isin(samples.post_ids, post_ids)


def confident(samples: Samples, thresholds: Sequence[Sequence[float]]) -> np.ndarray:
    """Samples stay if the probability of their class is strictly greater than their dataset's threshold for it.

    `thresholds` has, for each dataset, that of each class.

    Source: Serra et al., "The Emotions of the Crowd", ECAI 2023 (thresholds .70, or .90/.90/.70).
    """
    return samples.soft_labels.max(axis=1) > np.asarray(thresholds)[samples.datasets, samples.classes]


def undersampled(samples: Samples, seed: int) -> np.ndarray:
    """Every class is cut down, at random, to the size of the smallest class that has samples."""
    counts = np.bincount(samples.classes, minlength=len(CLASSES))
    size = counts[counts > 0].min(initial=len(samples))
    lots = np.array([lot(seed, "balance", key) for key in samples.keys])
    stays = np.zeros(len(samples), dtype=bool)
    for label in range(len(CLASSES)):
        members = np.flatnonzero(samples.classes == label)
        stays[members[np.argsort(lots[members], kind="stable")][:size]] = True
    return stays


def split_by_post(samples: Samples, shares: Sequence[float], seed: int) -> np.ndarray:
    """The number of the split that each sample falls into: int64 `(n,)`, index into `shares`.

    All pictures of a post, and all near duplicates, fall into one split: groups are the connected parts of the graph
    whose edges are "same post" and "near duplicates". A group's lot depends on its smallest post id alone.
    """
    groups = _linked(near_groups(samples.pdq_bits), samples.post_ids)
    smallest_post: dict[int, str] = {}
    for group, post_id in zip(groups.tolist(), samples.post_ids.tolist(), strict=True):
        smallest_post[group] = min(post_id, smallest_post.get(group, post_id))
    lots = {group: lot(seed, "split", post_id) for group, post_id in smallest_post.items()}
    edges = np.cumsum(shares)[:-1] / np.sum(shares)
    return np.searchsorted(edges, [lots[group] for group in groups.tolist()], side="right")


def lot(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that `name` draws: the same whatever else is in the dataset."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float holds: never rounded up to 1


def _linked(groups: np.ndarray, post_ids: np.ndarray) -> np.ndarray:
    """Connected components of samples that share a group or a post: int64 `(n,)`, numbered arbitrarily."""
    num_samples = len(groups)
    _, post_numbers = np.unique(post_ids, return_inverse=True)
    places = np.arange(num_samples)
    # Samples, then groups, then posts as the nodes of one graph.
    rows = np.concatenate([places, places])
    columns = np.concatenate([num_samples + groups, 2 * num_samples + post_numbers])
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(3 * num_samples, 3 * num_samples))
    return connected_components(graph, directed=False)[1][:num_samples]
