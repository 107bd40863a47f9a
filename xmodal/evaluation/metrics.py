"""Scores of predictions against human judgement, with bootstrap intervals. Pure functions of arrays."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from xmodal.labels import NEGATIVE, POSITIVE

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def auc(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Probability that a positive picture gets a higher polarity than a negative one; 0.5 is chance.

    `polarity` `(n,)`, any scale; `human` `(n,)`, above 0 positive, below 0 negative, those at 0 are left out;
    `weights` `(n,)`, how often each counts. NaN where a class has no weight.
    """
    judged = (human != 0) & (weights > 0)
    if len(np.unique(human[judged] > 0)) < 2:
        return float("nan")
    return float(roc_auc_score(human[judged] > 0, polarity[judged], sample_weight=weights[judged]))


def accuracy(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Share of the judged pictures whose polarity has the right sign; a polarity of 0 is taken for negative.

    The paper's rule: of three probabilities the neutral one is dropped, and the larger of the others decides.
    """
    judged = human != 0
    right = (polarity[judged] > 0) == (human[judged] > 0)
    total = weights[judged].sum()
    return float((right * weights[judged]).sum() / total) if total else float("nan")


def balanced_accuracy(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the accuracies on the positive and on the negative pictures; 0.5 is chance."""
    positive = accuracy(polarity, np.maximum(human, 0), weights)
    negative = accuracy(polarity, np.minimum(human, 0), weights)
    return (positive + negative) / 2


def rank_correlation(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's correlation of polarity and human score over all pictures, those at 0 included."""
    places = np.repeat(np.arange(len(human)), weights.astype(np.int64))
    if len(np.unique(human[places])) < 2 or len(np.unique(polarity[places])) < 2:
        return float("nan")
    return float(spearmanr(polarity[places], human[places]).statistic)


METRICS: dict[str, Metric] = {
    "auc": auc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "rank_correlation": rank_correlation,
}


def polarity_of(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities `(n, 3)` → positive less negative, `(n,)`, in [-1, 1]."""
    return probabilities[:, POSITIVE] - probabilities[:, NEGATIVE]


def with_intervals(
    polarity: np.ndarray,
    human: np.ndarray,
    groups: np.ndarray,
    *,
    num_draws: int,
    seed: int,
) -> dict[str, float]:
    """Every metric with its 95 % interval: `{name, name_low, name_high}` (percentile bootstrap, Efron 1979).

    Groups are drawn, not pictures: pictures that share one judgement are no independent evidence.
    """
    everyone = np.ones(len(human))
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    for weights in _group_draws(groups, num_draws, seed):
        for name, metric in METRICS.items():
            drawn[name].append(metric(polarity, human, weights))
    results: dict[str, float] = {"n": int((human != 0).sum())}
    for name, metric in METRICS.items():
        known = np.array(drawn[name])[~np.isnan(drawn[name])]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (float("nan"), float("nan"))
        results |= {name: metric(polarity, human, everyone), f"{name}_low": float(low), f"{name}_high": float(high)}
    return results


def _group_draws(groups: np.ndarray, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture counts in each bootstrap draw of as many groups as there are."""
    generator = np.random.default_rng(seed)
    _, numbers = np.unique(groups, return_inverse=True)
    num_groups = int(numbers.max(initial=-1)) + 1
    for _ in range(num_draws):
        counts = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        yield counts[numbers].astype(np.float64)
