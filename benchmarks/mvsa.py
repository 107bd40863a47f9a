"""The whole way on real tweets: what students see in pictures that people judged, and what of a recipe helps them.

    python benchmarks/mvsa.py --data MVSA --weights WEIGHTS --folder runs/mvsa --json mvsa.json

MVSA is MVSA-Single (Niu et al. 2016): `posts.jsonl`, 4,869 tweets with a picture each, `images/`, and `labels_dev.csv`,
what a person saw in the pictures of 3,611 of them (`path,image_class`: 0 negative, 1 neutral, 2 positive). WEIGHTS are
folders of transformers and timm: the teacher, and what the students begin with.

All is done by xmodal's own commands: `label` reads the texts, and has the pictures from a local web server. The teacher
is the mean of the transformer and of VADER's word list; either alone stands beside it. The judged pictures are cut into
five folds, stratified by class, near duplicates never in two. Each fold is a benchmark, a YAML file and a CSV. With it
among its `benchmarks`, `curate` leaves out the fold's posts, and all whose pictures are near to one of theirs; `train`
learns from all the others, with the teacher's labels, and `evaluate` judges the student by the fold. People's labels
judge and do nothing else.

What is told of several folds is of all their predictions together, with the 95 % interval of a bootstrap over groups of
near duplicates. The ablations are of the first fold. Teacher, picture size and recipe were chosen by how well a student
tells apart what the teacher calls positive and negative on held-out posts, which needs no human label. What people say
was seen in those trials too, most of it of the first fold, so the main result is told without that fold as well.

Each command is done once: beside what it made lie its settings, its seconds and its log. `--quick`: the first two
folds, one student, fewer ablations.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import report_file
from mvsa_judged import NUM_FOLDS, difference, figures_of, judged_pictures, result_lines
from mvsa_steps import BOTH, TEACHERS, Bench, Contender, Steps, label

LABELS = "labels_dev.csv"
LITE0, LITE2, VIT = "tf_efficientnet_lite0", "tf_efficientnet_lite2", "vit_small_patch14_depth9_224"
LARGER = 288
"""Pixels; lite0's weights were trained on 224, at which things look smaller (Touvron et al. 2019, FixRes)."""
NUM_QUICK_FOLDS = 2
CHOSEN_BY = 0
"""The fold of the ablations."""
PACKAGES = ("deepspeed", "scikit-learn", "timm", "torch", "transformers", "xmodal")

FROZEN: dict[str, Any] = {
    "epochs": 20,
    "frozen_epochs": 20,
    "keep_features": True,
    "global_batch_size": 128,
    "micro_batch_size": 16,  # the pass over the pictures is the faster for it
    # A thousand features, four thousand noisy labels: without a strong pull towards 0 the head learns them by heart.
    # The rate is high for the sake of EfficientNets, whose new heads begin with large weights.
    "optimizer.lr": 3e-3,
    "optimizer.weight_decay": 10.0,
    "loss.temperature": 4.0,
}
"""A head on what the backbone knows from ImageNet."""
TUNED: dict[str, Any] = {
    "epochs": 2,
    "global_batch_size": 32,
    "optimizer.lr": 2e-4,
    "optimizer.layer_decay": 0.8,
    "optimizer.warmup_share": 0.1,
    "optimizer.ema_decay": 0.99,
    "augment.color_jitter": 0.2,
    "loss.temperature": 4.0,
}
"""All layers, from a student of `FROZEN` on, by the same loss."""


def frozen(
    name: str, model: str = LITE0, threshold: float = 0.0, teacher: str = BOTH, size: int = 0, **changes: Any
) -> Contender:
    """By `FROZEN`, and what differs from it; `__` in a setting's name stands for a dot.

    `size`, if any, is that of the pictures; they are cut less then.
    """
    larger = {"student.model_args": _of_size(size), "student.eval_crop_share": 1.0} if size else {}
    return Contender(f"{name}, frozen", model, {**FROZEN, **larger, **_dotted(changes)}, threshold, teacher)


def _of_size(pixels: int) -> dict[str, Any]:
    return {"pretrained_cfg_overlay": {"input_size": [3, pixels, pixels]}}


def tuned(name: str, model: str = LITE0, threshold: float = 0.0, **changes: Any) -> Contender:
    """By `TUNED`, likewise, from the frozen student with the same changes."""
    start = frozen(name, model, threshold, **changes)
    return Contender(f"{name}, fine-tuned", model, {**TUNED, **_dotted(changes)}, threshold, start=start)


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}


STUDENTS = [frozen(f"{LITE0} at {LARGER} pixels", size=LARGER), frozen(LITE2, LITE2), frozen(VIT, VIT)]
BY_TRANSFORMER = frozen(f"{LITE0} at {LARGER} pixels, by the transformer alone", teacher="transformer", size=LARGER)
ABLATIONS = [
    frozen(LITE0),
    frozen(f"{LARGER} pixels", size=LARGER),
    frozen("by the transformer alone", teacher="transformer"),
    frozen("by the lexicon alone", teacher="lexicon"),
    frozen("temperature 2", loss__temperature=2.0),
    frozen("temperature 1", loss__temperature=1.0),
    frozen("hard targets", loss__kind="hard", loss__temperature=1.0),
    frozen("hard targets smoothed by 0.2", loss__kind="hard", loss__temperature=1.0, loss__label_smoothing=0.2),
    frozen("confidence above 0.5", threshold=0.5),
    frozen("confidence above 0.7", threshold=0.7),
    frozen("confidence above 0.9", threshold=0.9),
    frozen("weighted by confidence", loss__confidence_power=1.0),
    frozen("balanced classes", loss__class_weights="balanced"),
    frozen("weight decay 0.05", optimizer__weight_decay=0.05),
    tuned(LITE0),
    tuned("hard targets", loss__kind="hard", loss__temperature=1.0),
]
"""Soft targets of all posts, by the recipe, unless the name says otherwise; the first is what the others are held to.
"""
QUICK_STUDENTS = STUDENTS[:1]
QUICK_ABLATIONS = [one for one in ABLATIONS if one.start is None]


def main() -> None:
    """Do all steps, and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with posts.jsonl, images/ and {LABELS}")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the teacher's and the students'")
    parser.add_argument("--folder", type=Path, required=True, help="for all that is made; what is there is kept")
    parser.add_argument("--quick", action="store_true", help="two folds, one student, fewer ablations")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--port", type=int, default=8965, help="of the local web server; samples keep their URLs")
    arguments = parser.parse_args()
    steps, data, weights = Steps(arguments.folder.resolve()), arguments.data.resolve(), arguments.weights.resolve()
    folds = range(NUM_QUICK_FOLDS if arguments.quick else NUM_FOLDS)
    students = QUICK_STUDENTS if arguments.quick else STUDENTS
    ablations = QUICK_ABLATIONS if arguments.quick else ABLATIONS
    datasets = {teacher: label(steps, data, weights, arguments.port, teacher) for teacher in TEACHERS}
    judged = judged_pictures(datasets[BOTH], data / LABELS)
    bench = Bench(steps=steps, data=data, weights=weights, datasets=datasets, judged=judged)
    predicted = {student.name: bench.predictions(student, folds) for student in students}
    if len(students) > 1:
        predicted["mean of these students"] = np.mean(list(predicted.values()), axis=0)
    predicted[BY_TRANSFORMER.name] = bench.predictions(BY_TRANSFORMER, folds)
    predicted["the teachers, of the text"] = judged.teacher
    results = {name: figures_of(judged, one, folds) for name, one in predicted.items()}
    unseen = [fold for fold in folds if fold != CHOSEN_BY]
    of_unseen = {name: figures_of(judged, one, unseen) for name, one in predicted.items()}
    print(*result_lines(results, f"{len(folds)} folds, n = {results[students[0].name]['n']:.0f}"), sep="\n")
    print(*result_lines(of_unseen, f"without fold {CHOSEN_BY}"), sep="\n")

    tried = {one.name: bench.predictions(one, [CHOSEN_BY]) for one in ablations}
    of_ablations = {name: figures_of(judged, one, [CHOSEN_BY]) for name, one in tried.items()}
    for name, one in tried.items():
        of_ablations[name] |= difference(judged, one, tried[ablations[0].name])
    print(*result_lines(of_ablations, f"{LITE0}, fold {CHOSEN_BY}"), sep="\n")
    print(f"\nAUC less that of '{ablations[0].name}', on the same pictures:")
    for name, values in of_ablations.items():
        low, high = values["auc_difference_low"], values["auc_difference_high"]
        print(f"  {values['auc_difference']:+.3f} [{low:+.3f}, {high:+.3f}]  {name}")

    alone = [BY_TRANSFORMER.name, *(student.name for student in students)]
    best = max(alone, key=lambda name: results[name]["auc"])
    ratios = {f"{key} of {best}": round(results[best][key], 4) for key in ("auc", "auc_low", "auc_high")}
    ratios |= {f"auc of {name}": round(values["auc"], 4) for name, values in results.items()}
    ratios |= {f"auc without fold {CHOSEN_BY} of {name}": round(one["auc"], 4) for name, one in of_unseen.items()}
    ratios["hours of all steps"] = round(sum(steps.seconds.values()) / 3600, 3)
    figures = {
        **results,
        **{f"{name}, without fold {CHOSEN_BY}": one for name, one in of_unseen.items()},
        **{f"fold {CHOSEN_BY}: {name}": one for name, one in of_ablations.items()},
        "seconds": steps.seconds,
    }
    num_posts = len((data / "posts.jsonl").read_bytes().splitlines())
    work = (
        f"{len(judged.paths):,} judged pictures of {num_posts:,} posts, {len(folds)} of {NUM_FOLDS} folds, "
        f"{len(students)} students, {len(ablations)} ablations on fold {CHOSEN_BY}"
    )
    one_round = {name: {key: [value] for key, value in values.items()} for name, values in figures.items()}
    report_file.write(report_file.report("mvsa", work, PACKAGES, one_round, ratios), arguments.json)


if __name__ == "__main__":
    main()
