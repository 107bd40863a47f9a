"""How near a student is to its teacher: sums that ranks add up, and the metrics that these make."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from shards.view import target_array
from xmodal.labels import CLASSES, NEGATIVE, NEUTRAL, POSITIVE
from xmodal.training.features import Features, head_alone
from xmodal.training.losses import DistillationLoss, teacher_entropy
from xmodal.training.pictures import Pictures

NUM_SUMS = 5 + 2 * len(CLASSES)

_Answers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Logits, the teacher's targets, and the mask of what counts, of samples of this rank."""


@torch.no_grad()
def validate(
    student: Any, pictures: Pictures, loss: DistillationLoss, features: Features | None
) -> dict[str, float | None]:
    """The metrics of a student, or of the engine around it, on the view's val split: every sample once over all ranks.

    All ranks must call it. With the `features` of the split, the head alone looks at them.
    """
    student.eval()
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=pictures.device)
    answers = (
        _answers_to_pictures(student, pictures)
        if features is None
        else _answers_to_features(student, pictures, features)
    )
    for logits, targets, mask in answers:
        sums += validation_sums(logits, targets, loss(logits, targets), mask)
    dist.all_reduce(sums)
    return validation_metrics(sums)


def selection_cost(metrics: dict[str, float | None], select: str) -> float | None:
    """What is least in the best checkpoint, as a config's `select` has it; None where there are no metrics.

    Where no sample has a polarity by the teacher, the divergence decides in any case. One that is not finite counts as
    none: NaN is neither more nor less than others.
    """
    agreement, divergence = metrics.get("polarity_agreement"), metrics.get("kl")
    if select == "polarity_agreement" and agreement is not None:
        return -agreement
    return divergence if divergence is not None and math.isfinite(divergence) else None


def validation_sums(
    logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Sums over the samples of a batch that `mask` (B) keeps, float64; those of disjoint batches add up.

    `logits` and `targets`, the teacher's probabilities, are (B, classes); `losses` is (B). Returns `NUM_SUMS` values:
    samples, losses, divergences, samples that are not neutral by the teacher, those of them in which the student has
    the right one of negative and positive, and by the teacher's most probable class: samples, and those in which the
    student's is the same.
    """
    cross_entropy = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    of_class = torch.nn.functional.one_hot(targets.argmax(dim=1), len(CLASSES)).T
    agreeing = logits.argmax(dim=1) == targets.argmax(dim=1)
    is_polar = targets.argmax(dim=1) != NEUTRAL
    is_positive = logits[:, POSITIVE] > logits[:, NEGATIVE]
    has_right_sign = is_polar & (is_positive == (targets[:, POSITIVE] > targets[:, NEGATIVE]))
    divergences = cross_entropy - teacher_entropy(targets)
    rows = torch.stack(
        [torch.ones_like(losses), losses, divergences, is_polar, has_right_sign, *of_class, *(of_class * agreeing)]
    )
    return (rows * mask).double().sum(dim=1)


def validation_metrics(sums: torch.Tensor) -> dict[str, float | None]:
    """`loss`, `kl`, agreements and recalls, from the sums of all samples; nothing of none.

    `teacher_agreement` is the share of the samples with the same most probable class. `polarity_agreement` is the
    accuracy by the paper's rule, neutral being dropped on both sides: of the samples that are not neutral by the
    teacher, the share in which the student has the same one of negative and positive more probable; None of none.
    `recall_CLASS` is the share of the samples whose most probable class by the teacher is this one in which it is the
    student's, too; None where there are none. `recall_macro` is the mean over the classes that have one.
    """
    num_samples, loss, divergence, num_polar, right_signs, *by_class = sums.tolist()
    if not num_samples:
        return {}
    of_class, agreeing = by_class[: len(CLASSES)], by_class[len(CLASSES) :]
    recalls = [share / count if count else None for share, count in zip(agreeing, of_class, strict=True)]
    known = [recall for recall in recalls if recall is not None]
    return {
        "loss": loss / num_samples,
        "kl": divergence / num_samples,
        "teacher_agreement": sum(agreeing) / num_samples,
        "polarity_agreement": right_signs / num_polar if num_polar else None,
        **{f"recall_{name}": recall for name, recall in zip(CLASSES, recalls, strict=True)},
        "recall_macro": sum(known) / len(known),
    }


def _answers_to_pictures(student: Any, pictures: Pictures) -> Iterator[_Answers]:
    for batch in pictures.evaluated("val"):
        logits = student(pictures.pixels(batch)).float()
        yield logits, batch.targets.to(pictures.device), batch.mask.to(pictures.device)


def _answers_to_features(student: Any, pictures: Pictures, features: Features) -> Iterator[_Answers]:
    rows = torch.arange(pictures.ranks.rank, len(features.known), pictures.ranks.world_size)
    with head_alone(getattr(student, "module", student)):
        logits = student(features.values[0, rows].to(pictures.device)).float()
    targets = torch.from_numpy(target_array(pictures.view.split("val").rows))[rows]
    yield logits, targets.to(pictures.device), features.known[rows].to(pictures.device)
