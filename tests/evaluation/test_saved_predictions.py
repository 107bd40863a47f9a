"""The metrics of saved predictions are those that scikit-learn and torchmetrics give for the same files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional import classification, regression

from xmodal.benchmarks import Benchmark, read_benchmark
from xmodal.evaluation.evaluate import predictions_csv, score

NUM = 120


@pytest.fixture(scope="module", params=["classes", "graded"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    """A benchmark of 120 pictures, which need not be there, and a file of predictions that know a little."""
    folder = tmp_path_factory.mktemp(request.param)
    generator = np.random.default_rng(7)
    scores = generator.integers(-1, 2, NUM) if request.param == "classes" else generator.integers(-4, 5, NUM) / 4
    column, classes = ("class", "classes: {-1: negative, 0: neutral, 1: positive}")
    if request.param == "graded":
        column, classes = "score", ""
    rows = "".join(f"{number}.png,{score}\n" for number, score in enumerate(scores.tolist()))
    (folder / "table.csv").write_text(f"path,{column}\n{rows}")
    file = folder / "made.yaml"
    file.write_text(f"name: made\nimages: {folder}\nlabels: {folder}/table.csv\n{classes}\n")
    benchmark = read_benchmark(str(file))
    logits = generator.normal(0, 1, (NUM, 3)) + np.eye(3)[np.sign(scores).astype(int) + 1]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    (folder / "predictions.csv").write_bytes(predictions_csv(benchmark, probabilities))
    return benchmark, folder / "predictions.csv"


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    probabilities = [[float(row[name]) for name in ("negative", "neutral", "positive")] for row in rows]
    return np.array(probabilities), np.array([float(row["human_score"]) for row in rows])


def scored(benchmark: Benchmark, probabilities: np.ndarray) -> dict[str, float]:
    there = Benchmark(
        config=benchmark.config,
        paths=benchmark.paths,
        scores=benchmark.scores,
        groups=benchmark.groups,
        missing=np.zeros(NUM, dtype=bool),
    )
    return score(there, probabilities, num_draws=10, seed=0)


def test_the_two_class_metrics_are_theirs(saved):
    benchmark, file = saved
    probabilities, human = read(file)
    found = scored(benchmark, probabilities)
    judged = human != 0
    classes = (human[judged] > 0).astype(int)
    # The paper's rule, as its script has it: the neutral column is deleted, then argmax.
    poles = np.delete(probabilities[judged], 1, axis=1)
    called, polarity = poles.argmax(axis=1), poles[:, 1] - poles[:, 0]
    shares = poles / poles.sum(axis=1, keepdims=True)
    f1_negative, f1_positive = sklearn_metrics.f1_score(classes, called, average=None)
    confusion = sklearn_metrics.confusion_matrix(classes, called, normalize="true")
    by_sklearn = {
        "n": judged.sum(),
        "accuracy": sklearn_metrics.accuracy_score(classes, called),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(classes, called),
        "f1_negative": f1_negative,
        "f1_positive": f1_positive,
        "macro_f1": sklearn_metrics.f1_score(classes, called, average="macro"),
        "auc": sklearn_metrics.roc_auc_score(classes, polarity),
        "confusion_negative_negative": confusion[0, 0],
        "confusion_negative_positive": confusion[0, 1],
        "confusion_positive_negative": confusion[1, 0],
        "confusion_positive_positive": confusion[1, 1],
    }
    assert {name: found[name] for name in by_sklearn} == pytest.approx(by_sklearn)
    true, said, sure = torch.tensor(classes), torch.tensor(called), torch.tensor(shares)
    f1_of_each = classification.multiclass_f1_score(said, true, num_classes=2, average="none")
    by_torchmetrics = {
        "accuracy": classification.binary_accuracy(said, true),
        "balanced_accuracy": classification.multiclass_accuracy(said, true, num_classes=2, average="macro"),
        "f1_negative": f1_of_each[0],
        "f1_positive": f1_of_each[1],
        # Scaled to [0, 1]: it would take what is not for logits.
        "auc": classification.binary_auroc((torch.tensor(polarity) + 1) / 2, true),
        "calibration_error": classification.multiclass_calibration_error(sure, true, num_classes=2, n_bins=15),
    }
    assert {name: found[name] for name in by_torchmetrics} == pytest.approx(
        {name: float(value) for name, value in by_torchmetrics.items()}, abs=1e-6
    )


def test_the_metrics_of_three_classes_or_of_ranks_are_theirs(saved):
    benchmark, file = saved
    probabilities, human = read(file)
    found = scored(benchmark, probabilities)
    if benchmark.config.is_graded:
        polarity = probabilities[:, 2] - probabilities[:, 0]
        assert found["rank_correlation"] == pytest.approx(spearmanr(polarity, human).statistic)
        of_torch = regression.spearman_corrcoef(torch.tensor(polarity), torch.tensor(human))
        assert found["rank_correlation"] == pytest.approx(float(of_torch), abs=1e-6)
        assert "three_class_accuracy" not in found
        return
    classes, called = human.astype(int) + 1, probabilities.argmax(axis=1)
    f1 = sklearn_metrics.f1_score(classes, called, average=None)
    expected = {
        "three_class_accuracy": sklearn_metrics.accuracy_score(classes, called),
        "three_class_balanced_accuracy": sklearn_metrics.balanced_accuracy_score(classes, called),
        "three_class_macro_f1": f1.mean(),
        **{f"three_class_f1_{name}": f1[number] for number, name in enumerate(("negative", "neutral", "positive"))},
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    confusion = classification.multiclass_confusion_matrix(
        torch.tensor(called), torch.tensor(classes), num_classes=3, normalize="true"
    )
    assert found["three_class_confusion_neutral_positive"] == pytest.approx(float(confusion[1, 2]), abs=1e-6)
