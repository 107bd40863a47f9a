"""How mvsa.py has xmodal's own commands make a student for a fold, and say what it sees there: each done once."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mvsa_judged import Judged

from xmodal.demo.server import serve_folder
from xmodal.labels import CLASSES, NEUTRAL

ROOT = Path(__file__).resolve().parent.parent
TRANSFORMER = "teacher_minilm_semeval"
BOTH = "transformer and lexicon"
TEACHERS = (BOTH, "transformer", "lexicon")
COMMON: dict[str, Any] = {
    "deepspeed": str(ROOT / "configs/deepspeed/zero0.json"),
    "stream.num_lanes": 8,
    "stream.shards_per_block": 8,
    "checkpoint_every_epochs": 0,  # a run takes minutes
    "trackers": [],
}


@dataclass(frozen=True)
class Contender:
    """A student, and how it learns."""

    name: str
    model: str
    settings: Mapping[str, Any]
    """Of `xmodal train`, besides `COMMON`."""
    threshold: float = 0.0
    """Of the teacher's confidence, in `xmodal curate`. As many pictures are shown as without one: in more epochs."""
    teacher: str = BOTH
    """One of `TEACHERS`."""
    start: "Contender | None" = None
    """The student that it goes on from, instead of the model's own weights."""


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
    datasets: Mapping[str, Path]
    """By their teachers."""
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
        view = self._view(fold, benchmark, contender.threshold, contender.teacher)
        settings = dict(contender.settings)
        if contender.threshold:
            more = _num_train(self._view(fold, benchmark, 0.0, contender.teacher)) / _num_train(view)
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

    def _view(self, fold: int, benchmark: Path, threshold: float, teacher: str = BOTH) -> Path:
        recipe = {
            "datasets": [str(self.datasets[teacher])],
            "benchmarks": [str(benchmark)],
            **{f"confidence.{name}": threshold for name in CLASSES},
            "split.train": 0.95,
            "split.val": 0.05,
            "split.test": 0.0,
        }
        return self.steps.run("curate", f"fold_{fold}/view_{_name(teacher)}_{threshold:g}", recipe)


def _step(contender: Contender, fold: int) -> str:
    return f"fold_{fold}/{_name(contender.name)}"


def _name(text: str) -> str:
    return text.replace(",", "").replace(" ", "_")


def _num_train(view: Path) -> int:
    return json.loads((view / "view.json").read_text())["counts"]["splits"]["train"]


def label(steps: Steps, data: Path, weights: Path, port: int, teacher: str) -> Path:
    """The posts as a dataset, labelled by one of `TEACHERS`."""
    # fp32: the same labels on every machine.
    transformer = {"kind": "transformers", "model": str(weights / TRANSFORMER), "precision": "fp32"}
    lexicon = {"kind": "lexicon"}
    read_by = {
        BOTH: {"kind": "ensemble", "members": [transformer, lexicon]},
        "transformer": transformer,
        "lexicon": lexicon,
    }[teacher]
    with serve_folder(str(data), port) as bound:
        return steps.run(
            "label",
            f"dataset_{_name(teacher)}",
            {
                "posts": str(data / "posts.jsonl"),
                "base_url": f"http://127.0.0.1:{bound}/",
                "posts_per_unit": 256,
                **{f"teacher.{key}": value for key, value in read_by.items()},
                "fetch.allow_networks": ["127.0.0.0/8"],
                "politeness.requests_per_second": 0,
                "politeness.max_concurrent": 0,
            },
        )
