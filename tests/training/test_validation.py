"""What a validation says of a student, beside figures that scikit-learn makes of the same samples."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, recall_score

from xmodal.evaluation.metrics import accuracy, polarity_of
from xmodal.labels import CLASSES, NEGATIVE, NEUTRAL, POSITIVE
from xmodal.training.validation import NUM_SUMS, selection_cost, validation_metrics, validation_sums


def metrics_of(student: list[int], teacher: list[int]) -> dict[str, float | None]:
    """Of a student and a teacher by their most probable classes, in batches of two, the last one padded."""
    padded = len(student) % 2
    logits = torch.nn.functional.one_hot(torch.tensor(student + [POSITIVE] * padded), len(CLASSES)).float()
    targets = 0.1 + 0.7 * torch.nn.functional.one_hot(torch.tensor(teacher + [NEGATIVE] * padded), len(CLASSES))
    mask = torch.arange(len(logits)) < len(student)
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for batch in torch.arange(len(logits)).split(2):
        sums += validation_sums(logits[batch], targets[batch], torch.full((2,), 0.25), mask[batch])
    return validation_metrics(sums)


def test_recalls_are_those_of_sklearn():
    generator = np.random.default_rng(0)
    teacher, student = generator.integers(0, 3, 101).tolist(), generator.integers(0, 3, 101).tolist()
    found = metrics_of(student, teacher)
    expected = recall_score(teacher, student, labels=range(3), average=None)
    assert [found[f"recall_{name}"] for name in CLASSES] == pytest.approx(expected.tolist())
    assert found["recall_macro"] == pytest.approx(recall_score(teacher, student, average="macro"))
    assert found["teacher_agreement"] == pytest.approx(accuracy_score(teacher, student))
    assert found["loss"] == 0.25


def test_a_class_that_the_teacher_never_gives_has_no_recall_and_no_part_in_the_mean():
    found = metrics_of([NEGATIVE, POSITIVE, NEUTRAL], [NEGATIVE, NEGATIVE, NEUTRAL])
    assert found["recall_negative"] == 0.5
    assert found["recall_neutral"] == 1
    assert found["recall_positive"] is None
    assert found["recall_macro"] == 0.75


def test_the_divergence_of_the_teacher_from_itself_is_nothing():
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    sums = validation_sums(targets.log(), targets, torch.zeros(2), torch.ones(2, dtype=torch.bool))
    assert validation_metrics(sums)["kl"] == pytest.approx(0, abs=1e-6)


def test_of_no_samples_there_is_nothing_to_say():
    assert validation_metrics(torch.zeros(NUM_SUMS, dtype=torch.float64)) == {}


def test_agreement_on_polarity_is_the_papers_accuracy():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], 101)
    teacher = generator.integers(0, 3, 101)
    targets = torch.nn.functional.one_hot(torch.tensor(teacher), len(CLASSES)).double()
    logits = torch.tensor(probabilities).log()
    sums = validation_sums(logits, targets, torch.zeros(101), torch.ones(101, dtype=torch.bool))
    expected = accuracy(polarity_of(probabilities), teacher - 1, np.ones(101))
    assert validation_metrics(sums)["polarity_agreement"] == pytest.approx(expected)
    all_neutral = metrics_of([NEGATIVE, POSITIVE], [NEUTRAL, NEUTRAL])
    assert all_neutral["polarity_agreement"] is None


def test_a_checkpoint_is_selected_by_what_the_config_says_if_it_is_a_number():
    metrics: dict[str, float | None] = {"kl": 0.5, "polarity_agreement": 0.75}
    assert selection_cost(metrics, "last") == selection_cost(metrics, "kl") == 0.5
    assert selection_cost(metrics, "polarity_agreement") == -0.75
    assert selection_cost(metrics | {"polarity_agreement": None}, "polarity_agreement") == 0.5
    assert selection_cost({}, "kl") is None
    assert selection_cost(metrics | {"kl": math.nan}, "kl") is None
