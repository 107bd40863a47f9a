import math
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from xmodal.evaluation.metrics import (
    METRICS,
    accuracy,
    auc,
    balanced_accuracy,
    confusion_counts,
    f1_negative,
    f1_positive,
    metrics_of,
    polarity_of,
    pole_probabilities,
    rank_correlation,
    with_intervals,
)
from xmodal.evaluation.table import HEADLINE, Row, results_csv, results_markdown, results_text

NAN = float("nan")


def intervals(
    polarity: np.ndarray, human: np.ndarray, groups: np.ndarray, *, num_draws: int, seed: int
) -> dict[str, float]:
    """All metrics of a polarity with their intervals."""
    metrics = {name: partial(metric, polarity, human) for name, metric in METRICS.items()}
    judged = {"n": int((human != 0).sum())}
    return {**judged, **with_intervals(metrics, groups, num_draws=num_draws, seed=seed)}


def ones(values) -> np.ndarray:
    return np.ones(len(values))


@st.composite
def judged(draw: st.DrawFn, min_size: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polarities and human scores, few different ones so that there are ties, and integer weights."""
    size = draw(st.integers(min_size, 25))
    polarity = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    human = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    weights = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return np.array(polarity, dtype=float) / 4, np.array(human, dtype=float) / 2, np.array(weights, dtype=float)


def share_of_right_pairs(polarity: np.ndarray, human: np.ndarray, weights: np.ndarray) -> float:
    """AUC by its definition: over all pairs of a positive and a negative picture; a tie is half right."""
    right = total = 0.0
    for p in np.flatnonzero(human > 0):
        for n in np.flatnonzero(human < 0):
            weight = weights[p] * weights[n]
            total += weight
            right += weight * ((polarity[p] > polarity[n]) + 0.5 * (polarity[p] == polarity[n]))
    return right / total if total else NAN


def same(one: float, other: float) -> bool:
    return one == pytest.approx(other, abs=1e-12, nan_ok=True)


@given(judged())
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    polarity, human, weights = case
    assert same(auc(polarity, human, weights), share_of_right_pairs(polarity, human, weights))


@given(judged())
def test_auc_and_balanced_accuracy_are_those_of_scikit_learn(case):
    polarity, human, _ = case
    positive, scores = human[human != 0] > 0, polarity[human != 0]
    if len(set(positive.tolist())) < 2:
        assert math.isnan(auc(polarity, human, ones(human)))
        return
    assert same(auc(polarity, human, ones(human)), roc_auc_score(positive, scores))
    assert same(balanced_accuracy(polarity, human, ones(human)), balanced_accuracy_score(positive, scores > 0))


@pytest.mark.parametrize("name", METRICS)
@given(case=judged())
def test_an_integer_weight_is_a_repeated_sample(name, case):
    polarity, human, weights = case
    places = np.repeat(np.arange(len(human)), weights.astype(int))
    repeated = METRICS[name](polarity[places], human[places], ones(places))
    assert same(METRICS[name](polarity, human, weights), repeated)


@given(judged())
def test_auc_turns_around_with_the_polarity(case):
    polarity, human, weights = case
    assert same(auc(-polarity, human, weights), 1 - auc(polarity, human, weights))


@pytest.mark.parametrize(
    ("probabilities", "human", "right"),
    [
        # The neutral probability is the largest, and is dropped.
        ([0.1, 0.7, 0.2], 0.5, True),
        ([0.2, 0.7, 0.1], 0.5, False),
        ([0.2, 0.7, 0.1], -0.5, True),
        ([0.05, 0.05, 0.9], 0.01, True),
        ([0.05, 0.05, 0.9], -0.01, False),
        # Neither larger: taken for negative.
        ([0.25, 0.5, 0.25], -1, True),
        ([0.25, 0.5, 0.25], 1, False),
    ],
)
def test_the_larger_of_positive_and_negative_decides(probabilities, human, right):
    polarity = polarity_of(np.array([probabilities]))
    assert accuracy(polarity, np.array([human]), np.ones(1)) == right


def test_pictures_judged_0_are_in_no_class():
    polarity, human = np.array([0.5, -0.5, 0.5, 0.5]), np.array([1.0, -1.0, 0.0, -1.0])
    assert accuracy(polarity, human, ones(human)) == pytest.approx(2 / 3)
    assert balanced_accuracy(polarity, human, ones(human)) == pytest.approx((1 + 1 / 2) / 2)
    assert auc(polarity, human, ones(human)) == pytest.approx(3 / 4)


def test_balanced_accuracy_gives_both_classes_half_the_say():
    human = np.array([1.0] * 9 + [-1.0])
    always_positive = np.ones(10)
    assert accuracy(always_positive, human, ones(human)) == pytest.approx(0.9)
    assert balanced_accuracy(always_positive, human, ones(human)) == pytest.approx(0.5)


def test_rank_correlation_looks_at_the_order_alone_and_at_all_pictures():
    human = np.array([-1.0, -0.2, 0.0, 0.1, 0.9])
    assert rank_correlation(human**3, human, ones(human)) == pytest.approx(1)
    assert rank_correlation(-human, human, ones(human)) == pytest.approx(-1)
    # By hand: places 1 and 2 swapped, 1 - 6 * (1 + 1) / (5 * 24).
    assert rank_correlation(human[[0, 2, 1, 3, 4]], human, ones(human)) == pytest.approx(0.9)


def noisy(num_pictures: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    human = generator.uniform(-1, 1, num_pictures)
    return human + generator.normal(0, 0.8, num_pictures), human


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_holds_its_estimate(seed):
    polarity, human = noisy(80, seed)
    results = intervals(polarity, human, np.arange(80), num_draws=100, seed=0)
    assert results["n"] == 80
    for name in METRICS:
        assert results[f"{name}_low"] < results[name] < results[f"{name}_high"]


def test_the_intervals_of_a_seed_are_always_the_same():
    polarity, human = noisy(60, 0)

    first, again, other = (intervals(polarity, human, np.arange(60), num_draws=40, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(first[name] == other[name] for name in METRICS)


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    human = np.array([1.0, -1.0] * 100)
    polarity = human * np.where(np.arange(200) % 10 < 7, 1, -1)
    results = intervals(polarity, human, np.arange(200), num_draws=300, seed=0)
    deviation = (0.7 * 0.3 / 200) ** 0.5
    assert results["accuracy"] == pytest.approx(0.7)
    assert results["accuracy_high"] + results["accuracy_low"] == pytest.approx(2 * 0.7, abs=deviation)
    # 1.645 would be 90 %.
    half = (results["accuracy_high"] - results["accuracy_low"]) / 2
    assert half == pytest.approx(1.96 * deviation, abs=0.2 * deviation)


def test_drawing_groups_widens_the_interval_of_pictures_in_identical_pairs():
    polarity, human = (np.repeat(values, 2) for values in noisy(80, 0))

    grouped, independent = (
        intervals(polarity, human, groups, num_draws=200, seed=0)
        for groups in (np.repeat(np.arange(80), 2), np.arange(160))
    )
    for name in METRICS:
        # Half the evidence: wider by the square root of 2.
        widths = [results[f"{name}_high"] - results[f"{name}_low"] for results in (grouped, independent)]
        assert 1.2 < widths[0] / widths[1] < 1.7


def test_pairs_drawn_as_groups_have_the_intervals_of_one_of_each():
    polarity, human = noisy(50, 0)
    once = intervals(polarity, human, np.arange(50), num_draws=100, seed=0)
    pairs = intervals(np.repeat(polarity, 2), np.repeat(human, 2), np.repeat(np.arange(50), 2), num_draws=100, seed=0)
    assert pairs.pop("n") == 2 * once.pop("n")
    # Twice the samples, but tied ones: ranks, and so correlations, are the same.
    assert pairs == pytest.approx(once)


@pytest.mark.parametrize("human", [[0.5, 0.2, 0.9], [-0.5, -0.1, -1.0], [0.0, 0.0, 0.0]])
def test_one_class_alone_gives_not_a_number_and_no_warning(human):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = intervals(np.array([0.1, -0.3, 0.4]), np.array(human), np.arange(3), num_draws=50, seed=0)
        for name in ("auc", "balanced_accuracy"):
            assert all(math.isnan(results[name + suffix]) for suffix in ("", "_low", "_high"))
        table = results_text([Row("a", "made", results)])
        assert "nan" not in table
        # One for each metric that has no value: AUC and balanced accuracy at least.
        shown = [name for name in (*HEADLINE, "rank_correlation") if math.isnan(results.get(name, NAN))]
        assert table.count("—") == len(shown) >= 2


def test_a_single_group_has_values_but_no_intervals():
    polarity, human = np.array([0.5, -0.5, 0.9]), np.array([1.0, -1.0, 1.0])
    results = intervals(polarity, human, np.zeros(3), num_draws=20, seed=0)
    assert results["accuracy"] == 1
    assert all(math.isnan(results[f"{name}{end}"]) for name in METRICS for end in ("_low", "_high"))


def test_a_draw_without_a_class_is_left_out_of_the_interval():
    human = np.array([1.0, -1.0, -1.0])
    results = intervals(np.array([0.5, -0.5, 0.9]), human, np.arange(3), num_draws=200, seed=0)
    assert 0 <= results["auc_low"] <= results["auc"] <= results["auc_high"] <= 1


@given(judged())
def test_the_f1_of_each_class_is_that_of_scikit_learn(case):
    polarity, human, _ = case
    positive, called = human[human != 0] > 0, polarity[human != 0] > 0
    for metric, label in ((f1_negative, False), (f1_positive, True)):
        found = metric(polarity, human, ones(human))
        if label in positive or label in called:
            assert same(found, f1_score(positive, called, pos_label=label, zero_division=0))
        else:
            assert math.isnan(found)


def made_predictions(num_pictures: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(n, 3)` that know a little, and classes as -1, 0, 1."""
    generator = np.random.default_rng(seed)
    human = generator.integers(-1, 2, num_pictures).astype(float)
    logits = generator.normal(0, 1, (num_pictures, 3)) + 0.7 * np.eye(3)[human.astype(int) + 1]
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), human


def test_the_poles_are_scaled_to_add_up_to_1_and_equal_where_neither_is_there():
    poles = pole_probabilities(np.array([[0.1, 0.6, 0.3], [0.0, 1.0, 0.0]]))
    assert poles == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))


def test_which_metrics_there_are_depends_on_what_people_could_say():
    probabilities, human = made_predictions(50, 0)
    graded = metrics_of(probabilities, human, is_graded=True, has_neutral=False)
    classed = metrics_of(probabilities, human, is_graded=False, has_neutral=False)
    of_three = metrics_of(probabilities, human, is_graded=False, has_neutral=True)
    assert set(graded) - set(classed) == {"rank_correlation"}
    assert {"three_class_accuracy", "three_class_f1_neutral", "three_class_confusion_neutral_positive"} <= set(of_three)
    assert {name for name in of_three if not name.startswith("three_class")} == set(classed)


def test_the_confusion_counts_pictures_and_its_shares_add_up_to_1():
    probabilities, human = made_predictions(60, 1)
    counts = confusion_counts(probabilities, human)
    assert counts.sum() == (human != 0).sum()
    metrics = metrics_of(probabilities, human, is_graded=False, has_neutral=True)
    for row in ("negative", "positive"):
        shares = [metrics[f"confusion_{row}_{column}"](ones(human)) for column in ("negative", "positive")]
        assert sum(shares) == pytest.approx(1)
    assert metrics["confusion_negative_positive"](ones(human)) == pytest.approx(counts[0, 1] / counts[0].sum())


def rows_of_two_models() -> list[Row]:
    polarity, human = noisy(40, 0)
    results = intervals(polarity, human, np.arange(40), num_draws=20, seed=0)
    return [Row("a|b", "first", results), Row("c", "second", {**results, "missing": 3, "partial": True})]


def test_the_table_has_a_row_for_each_benchmark_and_a_column_for_each_metric():
    (_, _, results), _ = rows_of_two_models()
    header, *rows = results_text([Row("a", "a benchmark with a long name", results), Row("a", "b", results)]).split(
        "\n"
    )
    assert header.split() == ["benchmark", "n", *HEADLINE, "rank_correlation"]
    assert len({len(line) for line in [header, *rows]}) == 1
    assert f"{results['auc']:.3f} [{results['auc_low']:.3f}, {results['auc_high']:.3f}]" in rows[0]


def test_several_models_have_a_column_and_a_partial_result_is_marked_and_explained():
    lines = results_text(rows_of_two_models()).splitlines()
    assert lines[0].split()[:3] == ["model", "benchmark", "n"]
    assert lines[2].split()[:3] == ["c", "second", "40*"]
    assert lines[3] == "* partial: of second, 3 pictures are missing"


def test_markdown_escapes_what_would_be_a_column():
    lines = results_markdown(rows_of_two_models()).splitlines()
    assert lines[0].startswith("| model | benchmark | n | accuracy |")
    assert lines[1].startswith("| --- | --- | ---: |")
    assert lines[1].count("|") == lines[0].count("|")
    assert "| a\\|b | first |" in lines[2]
    assert lines[-1].startswith("\\* partial")


def test_csv_has_every_metric_and_bound():
    rows = rows_of_two_models()
    header, first, second = results_csv(rows).splitlines()
    assert header.split(",")[:3] == ["model", "benchmark", "n"]
    assert {f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")} <= set(header.split(","))
    assert float(first.split(",")[header.split(",").index("auc")]) == rows[0].metrics["auc"]
    assert first.endswith(",,")
    assert second.endswith(",3,True")
