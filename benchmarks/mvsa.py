"""The whole way on real tweets: what students see in pictures that people judged, and what of a recipe helps them.

    python benchmarks/mvsa.py --data MVSA --weights WEIGHTS --folder runs/mvsa --json mvsa.json

MVSA is MVSA-Single (Niu et al. 2016): `posts.jsonl`, 4,869 tweets with a picture each, `images/`, and `labels_dev.csv`,
what a person saw in the pictures of 3,611 of them (`path,image_class`: 0 negative, 1 neutral, 2 positive). WEIGHTS are
folders of transformers and timm: the teacher, and what the students begin with.

All is done by xmodal's own commands: `label` reads the texts, and has the pictures from a local web server. The judged
pictures are cut into five folds, stratified by class, near duplicates never in two. Each fold is a benchmark, a YAML
file and a CSV. With it among its `benchmarks`, `curate` leaves out the fold's posts, and all whose pictures are near to
one of theirs; `train` learns from all the others, with the teacher's labels, and `evaluate` judges the student by the
fold. People's labels judge and do nothing else.

What is told of several folds is of all their predictions together, with the 95 % interval of a bootstrap over groups of
near duplicates. The ablations are of the first fold. It is the only one whose human labels were looked at when the
recipes were chosen, so the main result is told of the four others, too.

Each command is done once: beside what it made lie its settings, its seconds and its log. `--quick`: the first two
folds, one student, fewer ablations.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import report_file
import yaml
from sklearn.model_selection import StratifiedGroupKFold

from shards.dataset import shard_names
from shards.index import read_index
from shards.storage import open_storage
from xmodal.curation.near_duplicates import near_groups, pack_hashes
from xmodal.demo.server import serve_folder
from xmodal.evaluation.compare import compare
from xmodal.evaluation.metrics import auc, metrics_of, polarity_of, with_intervals
from xmodal.labels import CLASSES, NEUTRAL

ROOT = Path(__file__).resolve().parent.parent
LABELS = "labels_dev.csv"
TEACHER = "teacher_minilm_semeval"
LITE0, LITE2, VIT = "tf_efficientnet_lite0", "tf_efficientnet_lite2", "vit_small_patch14_depth9_224"
NUM_FOLDS, NUM_QUICK_FOLDS = 5, 2
CHOSEN_BY = 0
"""The fold of the ablations."""
NUM_DRAWS = 1000
PACKAGES = ("deepspeed", "scikit-learn", "timm", "torch", "transformers", "xmodal")
FIGURES = ("auc", "balanced_accuracy", "macro_f1", "three_class_macro_f1")

COMMON: dict[str, Any] = {
    "deepspeed": str(ROOT / "configs/deepspeed/zero0.json"),
    "stream.num_lanes": 8,
    "stream.shards_per_block": 8,
    "checkpoint_every_epochs": 0,  # a run takes minutes
    "trackers": [],
}
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
}
"""All layers, from a student of `FROZEN` on."""


@dataclass(frozen=True)
class Contender:
    """A student, and how it learns."""

    name: str
    model: str
    settings: Mapping[str, Any]
    """Of `xmodal train`, besides `COMMON`."""
    threshold: float = 0.0
    """Of the teacher's confidence, in `xmodal curate`. As many pictures are shown as without one: in more epochs."""
    start: "Contender | None" = None
    """The student that it goes on from, instead of the model's own weights."""


def frozen(name: str, model: str = LITE0, threshold: float = 0.0, **changes: Any) -> Contender:
    """By `FROZEN`, and what differs from it; `__` in a setting's name stands for a dot."""
    return Contender(f"{name}, frozen", model, {**FROZEN, **_dotted(changes)}, threshold)


def tuned(name: str, model: str = LITE0, threshold: float = 0.0, **changes: Any) -> Contender:
    """By `TUNED`, likewise, from the frozen student with the same changes."""
    start = frozen(name, model, threshold, **changes)
    return Contender(f"{name}, fine-tuned", model, {**TUNED, **_dotted(changes)}, threshold, start)


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}


STUDENTS = [frozen(LITE0), frozen(LITE2, LITE2), frozen(VIT, VIT)]
ABLATIONS = [
    frozen(LITE0),
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


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Pictures that people judged, `n` of them."""

    paths: list[str]
    scores: np.ndarray
    """int64 `(n,)`: -1 negative, 0 neutral, 1 positive."""
    teacher: np.ndarray
    """float64 `(n, 3)`: what the teacher said of the texts beside them."""
    groups: np.ndarray
    """int64 `(n,)`: near duplicates have one number."""
    folds: np.ndarray
    """int64 `(n,)`."""

    def rows_of(self, folds: Iterable[int]) -> np.ndarray:
        """Which pictures are in some folds: bool `(n,)`."""
        return np.isin(self.folds, list(folds))


class Steps:
    """Commands of xmodal, each done once, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}

    def run(self, verb: str, step: str, settings: Mapping[str, Any]) -> Path:
        """Have `xmodal VERB` make `step`, a path below the folder; returns where it lies.

        Ends the program where the command fails, and where the step was done with other settings.
        """
        made = self.folder / step
        record, log_file = made.with_name(f"{made.name}.step.json"), made.with_name(f"{made.name}.log")
        asked = {"verb": verb, **json.loads(json.dumps(settings))}
        done = json.loads(record.read_text()) if record.exists() else None
        if done is None:
            made.parent.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            _xmodal([verb, f"--{_OUTPUT[verb]}={made}", *map(_argument, settings.items())], log_file)
            done = {"asked": asked, "seconds": round(time.perf_counter() - start, 1)}
            record.write_text(json.dumps(done, indent=2) + "\n")
            print(f"{time.strftime('%H:%M:%S')}  {done['seconds']:6.1f} s  {verb:<8}  {step}", flush=True)
        if done["asked"] != asked:
            sys.exit(f"{made}: was made with other settings: delete it and {record.name}, or give another --folder")
        self.seconds[step] = done["seconds"]
        return made


_OUTPUT = {"label": "dataset", "curate": "view", "train": "output", "evaluate": "output"}
"""The setting by which a command is told where to write."""


def _argument(setting: tuple[str, Any]) -> str:
    name, value = setting
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def _xmodal(arguments: Sequence[str], log_file: Path) -> None:
    with log_file.open("w") as log:
        command = [sys.executable, "-m", "xmodal.cli", *arguments]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"xmodal {arguments[0]} ended with exit code {ended.returncode}; {log_file} ends with\n{tail}")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where everything is, and the steps that lead from a contender to what it says of a fold's pictures."""

    steps: Steps
    data: Path
    weights: Path
    dataset: Path
    judged: Judged

    def predictions(self, contender: Contender, folds: Iterable[int]) -> np.ndarray:
        """Of all pictures of some folds, each by a student that has not seen it: `(n, 3)`, NaN for the other folds."""
        predicted = np.full((len(self.judged.paths), len(CLASSES)), np.nan)
        for fold in folds:
            predicted[self.judged.rows_of([fold])] = self._of_fold(contender, fold)
        return predicted

    def _of_fold(self, contender: Contender, fold: int) -> np.ndarray:
        benchmark = self._benchmark(fold)
        student = self._student(contender, fold, benchmark)
        judge = {"models": [str(student)], "benchmarks": [str(benchmark)], "tta": "flip", "num_draws": 1}
        judged = self.steps.run("evaluate", f"{_step(contender, fold)}-judged", judge)
        with (judged / f"predictions-{benchmark.stem}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == self._paths(fold)
        return np.array([[float(row[one]) for one in CLASSES] for row in rows])

    def _student(self, contender: Contender, fold: int, benchmark: Path) -> Path:
        view = self._view(fold, benchmark, contender.threshold)
        settings = dict(contender.settings)
        if contender.threshold:
            more = _num_train(self._view(fold, benchmark, 0.0)) / _num_train(view)
            settings |= {key: round(settings[key] * more) for key in ("epochs", "frozen_epochs") if key in settings}
        if settings.get("keep_features"):
            # One pass over the pictures serves all folds, and all ablations.
            settings["feature_folder"] = str(self.steps.folder / "features")
        weights = self.weights / contender.model
        if contender.start:
            weights = self._student(contender.start, fold, benchmark)
        given = {"view": str(view), "student.model": f"local-dir:{weights}", **COMMON, **settings}
        return self.steps.run("train", _step(contender, fold), given) / "student"

    def _paths(self, fold: int) -> list[str]:
        return [self.judged.paths[row] for row in np.flatnonzero(self.judged.rows_of([fold]))]

    def _benchmark(self, fold: int) -> Path:
        """The definition and table of a fold, in the form of the paper's benchmarks."""
        folder = self.steps.folder / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        classes = self.judged.scores[self.judged.rows_of([fold])] + NEUTRAL
        with (folder / "judged.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "class"), *zip(self._paths(fold), classes.tolist(), strict=True)])
        definition = {
            "name": f"mvsa_{fold}",
            "images": str(self.data),
            "labels": str(folder / "judged.csv"),
            "classes": {str(number): name for number, name in enumerate(CLASSES)},
        }
        file = folder / f"mvsa_{fold}.yaml"
        file.write_text(yaml.safe_dump(definition, sort_keys=False))
        return file

    def _view(self, fold: int, benchmark: Path, threshold: float) -> Path:
        recipe = {
            "datasets": [str(self.dataset)],
            "benchmarks": [str(benchmark)],
            **{f"confidence.{name}": threshold for name in CLASSES},
            "split.train": 0.95,
            "split.val": 0.05,
            "split.test": 0.0,
        }
        return self.steps.run("curate", f"fold_{fold}/view_{threshold:g}", recipe)


def _step(contender: Contender, fold: int) -> str:
    return f"fold_{fold}/{contender.name.replace(',', '').replace(' ', '_')}"


def _num_train(view: Path) -> int:
    return json.loads((view / "view.json").read_text())["counts"]["splits"]["train"]


def label(steps: Steps, data: Path, weights: Path, port: int) -> Path:
    """The posts as a dataset, labelled by the teacher."""
    with serve_folder(str(data), port) as bound:
        return steps.run(
            "label",
            "dataset",
            {
                "posts": str(data / "posts.jsonl"),
                "base_url": f"http://127.0.0.1:{bound}/",
                "posts_per_unit": 256,
                "teacher.kind": "transformers",
                "teacher.model": str(weights / TEACHER),
                "teacher.precision": "fp32",  # the same labels on every machine
                "fetch.allow_networks": ["127.0.0.0/8"],
                "politeness.requests_per_second": 0,
                "politeness.max_concurrent": 0,
            },
        )


def judged_pictures(dataset: Path, labels: Path) -> Judged:
    """The samples of a dataset that people judged, in the order of the shards, and the folds that they are cut into."""
    with labels.open(newline="") as file:
        class_of = {row["path"]: int(row["image_class"]) for row in csv.DictReader(file)}
    storage = open_storage(str(dataset))
    samples = [
        sample
        for name in shard_names(storage)
        for sample in read_index(storage, name).select(["url", "pdq", "soft_label"]).to_pylist()
    ]
    # Of all posts: two pictures may be near to one another by a third that nobody judged.
    all_groups = near_groups(pack_hashes(sample["pdq"] for sample in samples))
    paths = [urlsplit(sample["url"]).path.lstrip("/") for sample in samples]
    judged = [place for place, path in enumerate(paths) if path in class_of]
    classes, groups = np.array([class_of[paths[place]] for place in judged]), all_groups[judged]
    folds = np.empty(len(judged), dtype=np.int64)
    cutter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
    for fold, (_, rows) in enumerate(cutter.split(classes, classes, groups)):
        folds[rows] = fold
    return Judged(
        paths=[paths[place] for place in judged],
        scores=classes - NEUTRAL,
        teacher=np.array([samples[place]["soft_label"] for place in judged]),
        groups=groups,
        folds=folds,
    )


def figures_of(judged: Judged, predicted: np.ndarray, folds: Sequence[int]) -> dict[str, float]:
    """Figures of predictions `(n, 3)` of all pictures of some folds together, with intervals.

    `n` pictures are positive or negative; `auc_mean_of_folds` is the mean of each fold's own.
    """
    rows = judged.rows_of(folds) & ~np.isnan(predicted).any(axis=1)
    every = metrics_of(predicted[rows], judged.scores[rows], is_graded=False, has_neutral=True)
    metrics = {name: every[name] for name in FIGURES}
    found = with_intervals(metrics, judged.groups[rows], num_draws=NUM_DRAWS, seed=0)
    polarity = polarity_of(predicted)
    found["auc_mean_of_folds"] = float(
        np.mean([_auc(polarity, judged.scores, judged.rows_of([fold])) for fold in folds])
    )
    # Against the teacher, on the same pictures: what one may choose by where there are no people's labels.
    found["auc_by_teacher"] = _auc(polarity, judged.teacher.argmax(axis=1) - NEUTRAL, rows)
    return {"n": float((judged.scores[rows] != 0).sum()), **found}


def _auc(polarity: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    return auc(polarity[rows], scores[rows], np.ones(int(rows.sum())))


def result_lines(figures: Mapping[str, Mapping[str, float]], column: str) -> list[str]:
    """A table in Markdown: a row a contender."""
    columns = [
        column,
        "AUC",
        "balanced accuracy",
        "macro F1",
        "macro F1 of three",
        "mean of folds' AUC",
        "AUC by teacher",
    ]
    rows = [
        [
            name,
            *(f"{values[one]:.3f} [{values[f'{one}_low']:.3f}, {values[f'{one}_high']:.3f}]" for one in FIGURES),
            *(f"{values[one]:.3f}" for one in ("auc_mean_of_folds", "auc_by_teacher")),
        ]
        for name, values in figures.items()
    ]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def difference(judged: Judged, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """By how much the first predictions' AUC is above the second's, on the pictures that both have."""
    found = compare(
        (first, second),
        judged.scores,
        judged.groups,
        names=("first", "second"),
        benchmark="mvsa",
        num_draws=NUM_DRAWS,
        seed=0,
    )
    return {
        "auc_difference": found.auc_difference,
        "auc_difference_low": found.auc_difference_low,
        "auc_difference_high": found.auc_difference_high,
    }


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
    dataset = label(steps, data, weights, arguments.port)
    judged = judged_pictures(dataset, data / LABELS)
    bench = Bench(steps=steps, data=data, weights=weights, dataset=dataset, judged=judged)
    folds = range(NUM_QUICK_FOLDS if arguments.quick else NUM_FOLDS)
    students = QUICK_STUDENTS if arguments.quick else STUDENTS
    predicted = {student.name: bench.predictions(student, folds) for student in students}
    if len(students) > 1:
        predicted["mean of all students"] = np.mean(list(predicted.values()), axis=0)
    predicted["the teacher, of the text"] = judged.teacher
    results = {name: figures_of(judged, one, folds) for name, one in predicted.items()}
    unseen = [fold for fold in folds if fold != CHOSEN_BY]
    of_unseen = {name: figures_of(judged, one, unseen) for name, one in predicted.items()}
    print(*result_lines(results, f"{len(folds)} folds, n = {results[students[0].name]['n']:.0f}"), sep="\n")
    print(*result_lines(of_unseen, f"without fold {CHOSEN_BY}"), sep="\n")

    ablations = QUICK_ABLATIONS if arguments.quick else ABLATIONS
    tried = {one.name: bench.predictions(one, [CHOSEN_BY]) for one in ablations}
    of_ablations = {name: figures_of(judged, one, [CHOSEN_BY]) for name, one in tried.items()}
    for name, one in tried.items():
        of_ablations[name] |= difference(judged, one, tried[ablations[0].name])
    print(*result_lines(of_ablations, f"{LITE0}, fold {CHOSEN_BY}"), sep="\n")
    print(f"\nAUC less that of '{ablations[0].name}', on the same pictures:")
    for name, values in of_ablations.items():
        low, high = values["auc_difference_low"], values["auc_difference_high"]
        print(f"  {values['auc_difference']:+.3f} [{low:+.3f}, {high:+.3f}]  {name}")

    best = max((student.name for student in students), key=lambda name: results[name]["auc"])
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
