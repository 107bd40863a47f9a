"""What a report reads: summaries of a dataset, a view, a training run, evaluations and predictions.

Whatever is missing or malformed ends as a UserError that names the file.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import open_storage
from shards.view import SPLITS, View, open_view
from xmodal.curation.funnel import FunnelStep
from xmodal.evaluation.scores_file import read_scores
from xmodal.labelling.failures import OpenFailures
from xmodal.labels import CLASSES
from xmodal.training.metrics_file import read_metrics

Curve = list[tuple[float, float]]
"""(step, value), in the order of the steps."""

# What reading raises for a file that is not there, is not JSON, or is JSON of another shape.
_MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class FailureCount:
    """How many media gave no sample for one reason."""

    reason: str
    count: int
    num_retryable: int


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a report says of a dataset."""

    num_samples: int
    num_shards: int
    by_class: dict[str, int]
    teacher: str
    """Name and revision."""
    failures: list[FailureCount]
    """The most frequent first."""


@dataclass(frozen=True, kw_only=True)
class ViewSummary:
    """What a report says of a view."""

    view: View
    splits: dict[str, int]
    funnel: list[FunnelStep]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a report says of a training run."""

    settings: dict[str, str]
    """The settings that matter most, by their dotted names."""
    step_curves: dict[str, Curve]
    """`loss` and `lr`, as logged while training."""
    validation_curves: dict[str, Curve]
    """`loss`, `kl` and `teacher_agreement` on the view's val split."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One student in a file of `xmodal evaluate --json`."""

    name: str
    """Its name there; the file's stem, such as student or teacher, where it has none."""
    metrics: dict[str, dict[str, float]]
    """By benchmark: `{metric: value}`, with `metric_low` and `metric_high` where it has an interval."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of a benchmark's pictures; `paths`, `probabilities` `(n, 3)` and `human` `(n,)` go together."""

    name: str
    paths: list[str]
    probabilities: np.ndarray
    human: np.ndarray


_SETTINGS = (
    "student.model",
    "student.pretrained",
    "loss.kind",
    "loss.class_weights",
    "optimizer.lr",
    "global_batch_size",
    "epochs",
    "seed",
)


def read_dataset_summary(folder: str) -> DatasetSummary:
    """Summarise a finished dataset. Raises UserError if it is missing, unfinished or malformed."""
    storage = open_storage(folder)
    with _explained(f"{folder}/dataset.json", "run `xmodal label` again, to its end"):
        document = read_dataset(storage)
        shards = document["shards"]
        histograms = [shard.get("label_histogram") or {} for shard in shards]
        num_samples = sum(int(shard["samples"]) for shard in shards)
        by_class = {name: sum(int(counts.get(name, 0)) for counts in histograms) for name in CLASSES}
        teacher = document.get("teacher")
        named = f"{teacher['name']} {teacher['revision']}" if teacher else "not recorded"
    with _explained(f"{folder}/*.failures.jsonl", "run `xmodal label` again, to its end"):
        records = OpenFailures(storage).all()
        counts = Counter(str(record["reason"]) for record in records)
        retryable = Counter(str(record["reason"]) for record in records if record.get("retryable"))
    return DatasetSummary(
        num_samples=num_samples,
        num_shards=len(shards),
        by_class=by_class,
        teacher=named,
        failures=[
            FailureCount(reason=reason, count=count, num_retryable=retryable[reason])
            for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ],
    )


def read_view_summary(folder: str) -> ViewSummary:
    """Open a view and take its counts. Raises UserError if it is missing or malformed."""
    with _explained(f"{folder}/view.json", "run `xmodal curate` again"):
        view = open_view(folder)
        counts = view.description["counts"]
        return ViewSummary(
            view=view,
            splits={name: int(counts["splits"].get(name, 0)) for name in SPLITS},
            funnel=[
                FunnelStep(
                    step=str(step["step"]),
                    samples=int(step["samples"]),
                    by_class={name: int(step["by_class"][name]) for name in CLASSES},
                )
                for step in counts.get("funnel", [])
            ],
        )


def read_training_run(folder: str) -> TrainingRun:
    """Read `config.json` and `metrics.jsonl` of a training run. Raises UserError if one is missing or malformed."""
    config = _read_json(Path(folder, "config.json"), "give the `output` folder of `xmodal train`")
    if not Path(folder, "metrics.jsonl").is_file():
        raise UserError(f"{folder}/metrics.jsonl: no such file", "give the `output` folder of `xmodal train`")
    records = read_metrics(Path(folder))
    by_kind = {kind: [record for record in records if record["kind"] == kind] for kind in ("step", "validation")}
    return TrainingRun(
        settings=_settings(config),
        step_curves={name: _curve(by_kind["step"], name) for name in ("loss", "lr")},
        validation_curves={name: _curve(by_kind["validation"], name) for name in ("loss", "kl", "teacher_agreement")},
    )


def read_evaluations(files: Sequence[str]) -> list[Evaluation]:
    """What `xmodal evaluate --json` wrote, students in the files' order.

    Raises UserError for a file that is missing or something else, and for two students of one name.
    """
    found: dict[str, Evaluation] = {}
    for file in files:
        remedy = "give files that `xmodal evaluate --json` wrote, each student in one of them"
        for student, by_benchmark in read_scores(file).items():
            if student in found:
                raise UserError(f"{file}: {student}: another of the files has one of this name", remedy)
            metrics = {
                benchmark: {name: float("nan" if value is None else value) for name, value in values.items()}
                for benchmark, values in by_benchmark.items()
            }
            for name in ("auc", "auc_low", "auc_high"):
                for benchmark, values in metrics.items():
                    if values.get(name, 0) < 0 or values.get(name, 0) > 1:
                        raise UserError(f"{file}: {benchmark}: {name}: {values[name]} is out of range [0, 1]", remedy)
            found[student] = Evaluation(name=student, metrics=metrics)
    return list(found.values())


def read_predictions(file: str) -> Predictions:
    """Read a CSV of predictions, without the pictures that could not be decoded.

    Raises UserError if it is missing, or lacks a column or a number.
    """
    columns = ("path", *CLASSES, "human_score")
    remedy = f"give a file that `xmodal evaluate --output` wrote, with the columns {', '.join(columns)}"
    paths, numbers = [], []
    with _explained(file, remedy), open(file, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                values = [float(row[name]) for name in columns[1:]]
                if all(map(math.isfinite, values)):
                    paths.append(row["path"])
                    numbers.append(values)
        except KeyError as error:
            raise UserError(f"{file}: no column {error}", remedy) from error
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{file}: line {reader.line_num}: {error}", remedy) from error
    table = np.array(numbers, dtype=np.float64).reshape(-1, len(CLASSES) + 1)
    return Predictions(
        name=Path(file).stem.removeprefix("predictions-"), paths=paths, probabilities=table[:, :-1], human=table[:, -1]
    )


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Let what reading raises become a UserError about `what`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or what}: no such file", remedy) from error
    except _MALFORMED as error:
        raise UserError(f"{what}: malformed: {type(error).__name__}: {error}", remedy) from error


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    with _explained(str(path), remedy):
        return parse_json_object(path.read_bytes(), str(path), remedy)


def _curve(records: list[dict[str, Any]], name: str) -> Curve:
    """The finite values of a metric: a diverged step leaves a gap, not a broken axis."""
    return [
        (record["step"], float(record[name]))
        for record in records
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    ]


def _settings(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for dotted in _SETTINGS:
        value: Any = config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[dotted] = str(value)
    return found
