"""Scores of predictions against human judgement, with bootstrap intervals. Pure functions of arrays.

The decision between two classes is the paper's: of three probabilities the neutral one is dropped, and the larger of
the others decides. Where people could call a picture neutral, the decision between three is scored besides.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from scipy.stats import spearmanr

from xmodal.evaluation.reliability import calibration_error
from xmodal.labels import CLASSES, NEGATIVE, POSITIVE

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
WeightedMetric = Callable[[np.ndarray], float]
"""A metric of given predictions, by how often each counts."""

POLES = (CLASSES[NEGATIVE], CLASSES[POSITIVE])
NUM_BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""


def auc(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Probability that a positive picture gets a higher polarity than a negative one; 0.5 is chance.

    `polarity` `(n,)`, any scale; `human` `(n,)`, above 0 positive, below 0 negative, those at 0 are left out;
    `weights` `(n,)`, how often each counts. NaN where a class has no weight.
    """
    return auc_of_ranks(ranks_of(polarity), human, weights)


def ranks_of(polarity: np.ndarray) -> np.ndarray:
    """Place of each value among the different ones, from 0: polarities are sorted once, for the AUC of many draws."""
    return np.unique(polarity, return_inverse=True)[1]


def auc_of_ranks(ranks: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """`auc` of polarities with these ranks."""
    positive, negative = (
        np.bincount(ranks, weights=weights * judged, minlength=1) for judged in (human > 0, human < 0)
    )
    num_pairs = positive.sum() * negative.sum()
    # A tie is half right.
    right = (positive * (np.cumsum(negative) - negative / 2)).sum()
    return float(right / num_pairs) if num_pairs else float("nan")


def accuracy(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Share of the judged pictures whose polarity has the right sign; a polarity of 0 is taken for negative."""
    return _accuracy(_confusion_of_signs(polarity, human, weights))


def balanced_accuracy(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the accuracies on the positive and on the negative pictures; 0.5 is chance."""
    return _balanced_accuracy(_confusion_of_signs(polarity, human, weights))


def f1_negative(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the negative pictures."""
    return float(_f1_of_each(_confusion_of_signs(polarity, human, weights))[0])


def f1_positive(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the positive pictures."""
    return float(_f1_of_each(_confusion_of_signs(polarity, human, weights))[1])


def macro_f1(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the two F1."""
    return float(_f1_of_each(_confusion_of_signs(polarity, human, weights)).mean())


def rank_correlation(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's correlation of polarity and human score over all pictures, those at 0 included."""
    places = np.repeat(np.arange(len(human)), weights.astype(np.int64))
    if len(np.unique(human[places])) < 2 or len(np.unique(polarity[places])) < 2:
        return float("nan")
    return float(spearmanr(polarity[places], human[places]).statistic)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1_negative": f1_negative,
    "f1_positive": f1_positive,
    "macro_f1": macro_f1,
    "auc": auc,
    "rank_correlation": rank_correlation,
}
"""Those that polarity alone decides. `rank_correlation` is of scores, not of classes."""


def polarity_of(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities `(n, 3)` → positive less negative, `(n,)`, in [-1, 1]."""
    return probabilities[:, POSITIVE] - probabilities[:, NEGATIVE]


def pole_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities `(n, 3)` → those of negative and positive alone, `(n, 2)`, scaled to add up to 1."""
    poles = probabilities[:, [NEGATIVE, POSITIVE]]
    total = poles.sum(axis=1, keepdims=True)
    return np.where(total > 0, poles / np.where(total > 0, total, 1), 0.5)


def metrics_of(
    probabilities: np.ndarray, human: np.ndarray, *, is_graded: bool, has_neutral: bool
) -> dict[str, WeightedMetric]:
    """All metrics of predictions `(n, 3)` of pictures with human scores `(n,)`.

    `confusion_ROW_COLUMN` is the share of the pictures that people call ROW which are predicted as COLUMN.
    """
    polarity = polarity_of(probabilities)
    found: dict[str, WeightedMetric] = {
        name: partial(metric, polarity, human)
        for name, metric in METRICS.items()
        if is_graded or metric is not rank_correlation
    }
    found["auc"] = partial(auc_of_ranks, ranks_of(polarity), human)
    judged = human != 0
    poles, classes = pole_probabilities(probabilities)[judged], (human[judged] > 0).astype(np.int64)
    found["calibration_error"] = lambda weights: calibration_error(poles, classes, NUM_BINS, weights[judged])
    confusion = partial(_confusion_of_signs, polarity, human)
    found |= {f"confusion_{name}": share for name, share in _shares(confusion, POLES).items()}
    if has_neutral:
        confusion = partial(_confusion, probabilities.argmax(axis=1), np.sign(human).astype(np.int64) + 1, len(CLASSES))
        found |= {f"three_class_{name}": metric for name, metric in _metrics_of_three(confusion).items()}
    return found


def confusion_counts(probabilities: np.ndarray, human: np.ndarray) -> np.ndarray:
    """How many pictures that people call negative and positive (rows) are predicted as either: int64 `(2, 2)`."""
    return _confusion_of_signs(polarity_of(probabilities), human, np.ones(len(human))).astype(np.int64)


def with_intervals(
    metrics: Mapping[str, WeightedMetric], groups: np.ndarray, *, num_draws: int, seed: int
) -> dict[str, float]:
    """Every metric with its 95 % interval: `{name, name_low, name_high}` (percentile bootstrap, Efron 1979).

    Groups are drawn, not pictures: pictures that share one judgement are no independent evidence.
    """
    everyone = np.ones(len(groups))
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for weights in group_draws(groups, num_draws, seed):
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    results: dict[str, float] = {}
    for name, metric in metrics.items():
        low, high = interval_of_draws(np.array(drawn[name]))
        results |= {name: metric(everyone), f"{name}_low": low, f"{name}_high": high}
    return results


def interval_of_draws(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a metric's values over draws; those that have none are left out."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (float("nan"), float("nan"))
    return float(low), float(high)


def group_draws(groups: np.ndarray, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture counts in each bootstrap draw of as many groups as there are.

    There are none of a single group: nothing is known of how much others would differ from it.
    """
    generator = np.random.default_rng(seed)
    _, numbers = np.unique(groups, return_inverse=True)
    num_groups = int(numbers.max(initial=-1)) + 1
    if num_groups == 1:
        return
    for _ in range(num_draws):
        counts = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        yield counts[numbers].astype(np.float64)


def _metrics_of_three(confusion: Callable[[np.ndarray], np.ndarray]) -> dict[str, WeightedMetric]:
    def f1(class_id: int, weights: np.ndarray) -> float:
        return float(_f1_of_each(confusion(weights))[class_id])

    return {
        "accuracy": lambda weights: _accuracy(confusion(weights)),
        "balanced_accuracy": lambda weights: _balanced_accuracy(confusion(weights)),
        **{f"f1_{name}": partial(f1, class_id) for class_id, name in enumerate(CLASSES)},
        "macro_f1": lambda weights: float(_f1_of_each(confusion(weights)).mean()),
        **{f"confusion_{name}": share for name, share in _shares(confusion, CLASSES).items()},
    }


def _shares(confusion: Callable[[np.ndarray], np.ndarray], names: tuple[str, ...]) -> dict[str, WeightedMetric]:
    """Each cell of a confusion, as a share of its row."""

    def share(row: int, column: int, weights: np.ndarray) -> float:
        counts = confusion(weights)[row]
        return float(_ratio(counts[column], counts.sum()))

    return {
        f"{row_name}_{column_name}": partial(share, row, column)
        for row, row_name in enumerate(names)
        for column, column_name in enumerate(names)
    }


def _confusion_of_signs(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The confusion of negative and positive; pictures judged 0 are in no class."""
    return _confusion(polarity > 0, human > 0, len(POLES), weights * (human != 0))


def _confusion(predicted: np.ndarray, classes: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """Weight of each true class (rows) that is predicted as each (columns)."""
    cells = classes.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, weights=weights, minlength=num_classes**2).reshape(num_classes, num_classes)


def _accuracy(confusion: np.ndarray) -> float:
    return float(_ratio(confusion.trace(), confusion.sum()))


def _balanced_accuracy(confusion: np.ndarray) -> float:
    return float(_ratio(confusion.diagonal(), confusion.sum(axis=1)).mean())


def _f1_of_each(confusion: np.ndarray) -> np.ndarray:
    """NaN for a class that is neither there nor predicted."""
    return _ratio(2 * confusion.diagonal(), confusion.sum(axis=0) + confusion.sum(axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the whole is nothing."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
