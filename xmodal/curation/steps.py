"""The steps of curation: pure functions from columns of the samples to which of them stay.

All columns have one entry a sample; what is returned is a bool array `(n,)`, True for what stays. None depends on the
order of the samples: where a choice is left, `ranks` decides it, a sample's place in an order that no file makes.
"""

from collections.abc import Iterable

import numpy as np


def equal_rows(rows: np.ndarray) -> np.ndarray:
    """uint8 `(n, 32)` → int64 `(n,)`: one number for all rows that are equal, another for each other, all below n."""
    words = np.ascontiguousarray(rows).view(np.uint64)
    # Hashes that agree in their first word are equal, but for accidents: then they are ordered by all words.
    order = np.argsort(words[:, 0])
    is_new = _differs(words, order)
    if (is_new != _differs(words[:, :1], order)).any():
        order = np.lexsort(words.T)
        is_new = _differs(words, order)
    numbers = np.empty(len(rows), dtype=np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    return numbers


def _differs(words: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of the rows in an order, which are unlike the one before them: bool `(n,)`, True for the first."""
    is_new = np.zeros(len(order), dtype=bool)
    is_new[:1] = True
    for word in words.T:
        ordered = word[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    return is_new


def first_of_each(groups: np.ndarray, *preferences: np.ndarray) -> np.ndarray:
    """Of each group (int64, from 0) that member stays which has the smallest preference; of equals, in the next one."""
    stays = np.ones(len(groups), dtype=bool)
    if not len(groups):
        return stays
    # Most pictures have no duplicate: what need not be sorted is not.
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    order = several[np.lexsort([column[several] for column in (*reversed(preferences), groups)])]
    ordered = groups[order]
    stays[order[1:]] = ordered[1:] != ordered[:-1]
    return stays


def confident(confidence: np.ndarray, classes: np.ndarray, datasets: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Samples stay if the probability of their class is strictly greater than the threshold.

    `thresholds` float64 `(datasets, classes)`: each dataset has its own for each class.
    Source: Serra et al., "The Emotions of the Crowd", ECAI 2023 (thresholds .70, or .90/.90/.70).
    """
    return confidence > thresholds[datasets, classes]


def capped(classes: np.ndarray, lots: np.ndarray, ranks: np.ndarray, size: int) -> np.ndarray:
    """Of each class those `size` samples stay that drew the smallest lots; all of a smaller class."""
    stays = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        stays[members[np.lexsort((ranks[members], lots[members]))][:size]] = True
    return stays


def smallest_class(classes: np.ndarray) -> int:
    """How many samples the smallest class has, of those that have any."""
    counts = np.bincount(classes)
    return int(counts[counts > 0].min(initial=len(classes)))


def split_of(lots: np.ndarray, shares: Iterable[float]) -> np.ndarray:
    """The number of the split that each lot (of a post) falls into: int64, index into `shares`.

    It depends on the lot alone, so a post stays in its split whatever else comes into the dataset or leaves it.
    """
    bounds = np.cumsum(list(shares))
    return np.searchsorted(bounds[:-1] / bounds[-1], lots, side="right")


def without_leaks(splits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Of near duplicates (equal `groups`, int64 from 0) in several splits, those in the one of highest number stay.

    So nothing of what a student is judged on was among what it learned from, and no post changes its split for it.
    """
    highest = np.zeros(int(groups.max(initial=-1)) + 1, dtype=splits.dtype)
    np.maximum.at(highest, groups, splits)
    return splits == highest[groups]
