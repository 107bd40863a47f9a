"""The metrics of saved predictions as scikit-learn and torchmetrics give them: what ours are held against."""

import csv
from pathlib import Path

import numpy as np
import torch
from sklearn import metrics
from torchmetrics.functional import classification

from xmodal.labels import CLASSES


def saved_predictions(*files: Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(n, 3)` and human scores `(n,)` of the pictures of all files that could be decoded."""
    rows = []
    for file in files:
        with file.open(newline="") as lines:
            rows += list(csv.DictReader(lines))
    probabilities = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    known = ~np.isnan(probabilities).any(axis=1)
    return probabilities[known], np.array([float(row["human_score"]) for row in rows])[known]


def two_class_by_sklearn(probabilities: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """Of the pictures that people call negative or positive."""
    classes, called, polarity, _ = _poles(probabilities, human)
    f1_negative, f1_positive = metrics.f1_score(classes, called, average=None)
    confusion = metrics.confusion_matrix(classes, called, normalize="true")
    return {
        "n": len(classes),
        "accuracy": metrics.accuracy_score(classes, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(classes, called),
        "f1_negative": f1_negative,
        "f1_positive": f1_positive,
        "macro_f1": metrics.f1_score(classes, called, average="macro"),
        "auc": metrics.roc_auc_score(classes, polarity),
        "confusion_negative_negative": confusion[0, 0],
        "confusion_negative_positive": confusion[0, 1],
        "confusion_positive_negative": confusion[1, 0],
        "confusion_positive_positive": confusion[1, 1],
    }


def two_class_by_torchmetrics(probabilities: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """Likewise; in float32, so they differ from ours by some 10⁻⁷."""
    classes, called, polarity, shares = _poles(probabilities, human)
    true, said, sure = torch.tensor(classes), torch.tensor(called), torch.tensor(shares)
    f1_of_each = classification.multiclass_f1_score(said, true, num_classes=2, average="none")
    found = {
        "accuracy": classification.binary_accuracy(said, true),
        "balanced_accuracy": classification.multiclass_accuracy(said, true, num_classes=2, average="macro"),
        "f1_negative": f1_of_each[0],
        "f1_positive": f1_of_each[1],
        # Scaled to [0, 1]: it would take what is not for logits.
        "auc": classification.binary_auroc((torch.tensor(polarity) + 1) / 2, true),
        "calibration_error": classification.multiclass_calibration_error(sure, true, num_classes=2, n_bins=15),
    }
    return {name: float(value) for name, value in found.items()}


def three_class_by_sklearn(probabilities: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """Of all pictures, whose scores are -1, 0 or 1."""
    classes, called = human.astype(int) + 1, probabilities.argmax(axis=1)
    f1 = metrics.f1_score(classes, called, average=None)
    return {
        "three_class_accuracy": metrics.accuracy_score(classes, called),
        "three_class_balanced_accuracy": metrics.balanced_accuracy_score(classes, called),
        "three_class_macro_f1": f1.mean(),
        **{f"three_class_f1_{name}": f1[number] for number, name in enumerate(CLASSES)},
    }


def _poles(probabilities: np.ndarray, human: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the pictures that are not judged 0: the class (0 or 1), that which is predicted, its polarity, and the
    probabilities of both scaled to add up to 1.
    """
    judged = human != 0
    # The paper's rule, as its script has it: the neutral column is deleted, then argmax.
    poles = np.delete(probabilities[judged], 1, axis=1)
    shares = poles / poles.sum(axis=1, keepdims=True)
    return (human[judged] > 0).astype(int), poles.argmax(axis=1), poles[:, 1] - poles[:, 0], shares
