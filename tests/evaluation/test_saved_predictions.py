"""The metrics of saved predictions are those that scikit-learn and torchmetrics give for the same files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference_metrics import (
    saved_predictions,
    three_class_by_sklearn,
    two_class_by_sklearn,
    two_class_by_torchmetrics,
)
from scipy.stats import spearmanr
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
    probabilities, human = saved_predictions(file)
    found = scored(benchmark, probabilities)
    by_sklearn = two_class_by_sklearn(probabilities, human)
    assert {name: found[name] for name in by_sklearn} == pytest.approx(by_sklearn)
    by_torchmetrics = two_class_by_torchmetrics(probabilities, human)
    assert {name: found[name] for name in by_torchmetrics} == pytest.approx(by_torchmetrics, abs=1e-6)


def test_the_metrics_of_three_classes_or_of_ranks_are_theirs(saved):
    benchmark, file = saved
    probabilities, human = saved_predictions(file)
    found = scored(benchmark, probabilities)
    if benchmark.config.is_graded:
        polarity = probabilities[:, 2] - probabilities[:, 0]
        assert found["rank_correlation"] == pytest.approx(spearmanr(polarity, human).statistic)
        of_torch = regression.spearman_corrcoef(torch.tensor(polarity), torch.tensor(human))
        assert found["rank_correlation"] == pytest.approx(float(of_torch), abs=1e-6)
        assert "three_class_accuracy" not in found
        return
    expected = three_class_by_sklearn(probabilities, human)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    confusion = classification.multiclass_confusion_matrix(
        torch.tensor(probabilities.argmax(axis=1)), torch.tensor(human.astype(int) + 1), num_classes=3, normalize="true"
    )
    assert found["three_class_confusion_neutral_positive"] == pytest.approx(float(confusion[1, 2]), abs=1e-6)
