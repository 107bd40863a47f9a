"""Is one student better than another, on the same pictures? Pure functions of arrays."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from xmodal.evaluation.metrics import (
    accuracy,
    auc_of_ranks,
    group_draws,
    interval_of_draws,
    polarity_of,
    ranks_of,
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two students on one benchmark; differences are of the first less the second."""

    benchmark: str
    first: str
    second: str
    n: int
    """Pictures that are judged, and that both have predictions of."""
    only_first_right: int
    only_second_right: int
    mcnemar_p: float
    """Of McNemar's exact test (1947): how likely at least so uneven a split of the pictures that one alone has right is
    where both are equally good. It takes pictures as independent, whatever their groups."""
    accuracy_difference: float
    accuracy_difference_low: float
    accuracy_difference_high: float
    auc_difference: float
    auc_difference_low: float
    auc_difference_high: float
    auc_p: float
    """Two-sided, by the share of the bootstrap's draws of groups in which the difference has the other sign."""


def compare(
    probabilities: tuple[np.ndarray, np.ndarray],
    human: np.ndarray,
    groups: np.ndarray,
    *,
    names: tuple[str, str],
    benchmark: str,
    num_draws: int,
    seed: int,
) -> Comparison:
    """Compare predictions `(n, 3)` of the same pictures, with human scores `(n,)` and groups `(n,)`.

    p values are those of one comparison: among many, some are small by chance.
    """
    known = ~np.isnan(probabilities[0]).any(axis=1) & ~np.isnan(probabilities[1]).any(axis=1) & (human != 0)
    first, second = (polarity_of(of_one[known]) for of_one in probabilities)
    human, groups, everyone = human[known], groups[known], np.ones(int(known.sum()))
    is_right = [(polarity > 0) == (human > 0) for polarity in (first, second)]
    only_first, only_second = int((is_right[0] & ~is_right[1]).sum()), int((is_right[1] & ~is_right[0]).sum())
    differing = only_first + only_second
    # The same draws for both: what is hard in one draw is hard for both of them.
    first_ranks, second_ranks = ranks_of(first), ranks_of(second)

    def differences(weights: np.ndarray) -> tuple[float, float]:
        return (
            accuracy(first, human, weights) - accuracy(second, human, weights),
            auc_of_ranks(first_ranks, human, weights) - auc_of_ranks(second_ranks, human, weights),
        )

    draws = [differences(weights) for weights in group_draws(groups, num_draws, seed)]
    accuracy_difference, auc_difference = differences(everyone)
    of_accuracy, of_auc = np.array(draws).reshape(-1, 2).T
    accuracy_low, accuracy_high = interval_of_draws(of_accuracy)
    auc_low, auc_high = interval_of_draws(of_auc)
    return Comparison(
        benchmark=benchmark,
        first=names[0],
        second=names[1],
        n=len(human),
        only_first_right=only_first,
        only_second_right=only_second,
        mcnemar_p=float(binomtest(only_first, differing).pvalue) if differing else 1.0,
        accuracy_difference=accuracy_difference,
        accuracy_difference_low=accuracy_low,
        accuracy_difference_high=accuracy_high,
        auc_difference=auc_difference,
        auc_difference_low=auc_low,
        auc_difference_high=auc_high,
        auc_p=_two_sided(of_auc),
    )


def _two_sided(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    # Of so many draws none may have the other sign: that is no p of 0.
    shares = [(1 + (known <= 0).sum()) / (1 + len(known)), (1 + (known >= 0).sum()) / (1 + len(known))]
    return float(min(1.0, 2 * min(shares)))
