"""Folds of a benchmark's pictures: those of the paper's protocol, and those that keep duplicates together."""

from collections.abc import Iterable

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

NUM_FOLDS, FOLD_SEED = 5, 42
"""Of the paper's five-fold protocol: scikit-learn's stratified folds, shuffled."""


def stratified_folds(classes: np.ndarray, num_folds: int = NUM_FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """The fold of each picture, int64 `(n,)`, as the paper's script has them; `classes` `(n,)` are equally spread.

    Each class must have as many pictures as there are folds.
    """
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    return _numbered(folds.split(classes, classes), len(classes))


def grouped_folds(
    classes: np.ndarray, groups: np.ndarray, num_folds: int = NUM_FOLDS, seed: int = FOLD_SEED
) -> np.ndarray:
    """As `stratified_folds`, and the pictures of a group (`groups` int64 `(n,)`) are in one fold.

    Where each picture is a group of its own, the folds are the paper's.
    """
    if len(np.unique(groups)) == len(groups):
        return stratified_folds(classes, num_folds, seed)
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    return _numbered(folds.split(classes, classes, groups), len(classes))


def _numbered(folds: Iterable[tuple[np.ndarray, np.ndarray]], num_pictures: int) -> np.ndarray:
    fold_of = np.empty(num_pictures, dtype=np.int64)
    for number, (_, test) in enumerate(folds):
        fold_of[test] = number
    return fold_of
