"""Two sets of labels of the same samples: how often they say the same. Pure functions of arrays."""

from dataclasses import dataclass

import numpy as np

from xmodal.labels import CLASSES


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What two teachers say of the same samples."""

    confusion: np.ndarray
    """int64 `(3, 3)`: how many the first says the row's class of, and the second the column's."""

    @property
    def num_samples(self) -> int:
        """How many both say something of."""
        return int(self.confusion.sum())

    @property
    def flips(self) -> float:
        """Share of the samples that the second teacher calls otherwise."""
        return 1 - self.confusion.trace() / self.num_samples

    @property
    def flips_of_class(self) -> np.ndarray:
        """The same among the samples of each class of the first teacher, `(3,)`; NaN for a class without any."""
        sizes = self.confusion.sum(axis=1)
        return np.where(sizes > 0, 1 - self.confusion.diagonal() / np.maximum(sizes, 1), np.nan)

    @property
    def kappa(self) -> float:
        """Cohen's (1960): agreement beyond that of teachers who draw lots; NaN where both know one class alone."""
        by_lot = self.confusion.sum(axis=1) @ self.confusion.sum(axis=0) / self.num_samples**2
        return (1 - self.flips - by_lot) / (1 - by_lot) if by_lot < 1 else float("nan")


def agreement_of(first: np.ndarray, second: np.ndarray) -> Agreement:
    """The agreement of soft labels `(n, 3)` of the same samples, each for its most probable class; n at least 1."""
    num_classes = len(CLASSES)
    pairs = num_classes * first.argmax(axis=1) + second.argmax(axis=1)
    counts = np.bincount(pairs, minlength=num_classes**2)
    return Agreement(confusion=counts.reshape(num_classes, num_classes))
