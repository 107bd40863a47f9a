"""Students and benchmarks → metrics with intervals, and predictions with their paths."""

import csv
import io
import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from shards.checks import require_range
from shards.errors import ConfigError, UserError
from shards.storage import open_storage
from xmodal.benchmarks import Benchmark, MissingPicturesError, load_benchmark
from xmodal.evaluation.compare import Comparison, compare
from xmodal.evaluation.metrics import metrics_of, with_intervals
from xmodal.evaluation.output_files import check_output_file, open_output_folder, write_json
from xmodal.evaluation.predict import predict, require_same
from xmodal.evaluation.table import Row
from xmodal.labels import CLASSES
from xmodal.students import load_student, student_fingerprint
from xmodal.training.mistakes import by_all, by_first


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which students are judged by which benchmarks."""

    models: list[str]
    """`-m A B`: folders of exported students, or names of the paper's models (see `xmodal models list`)."""
    benchmarks: list[str]
    """`-b A B`: names (see `xmodal benchmarks list`) or YAML files, such as configs/benchmarks/emoji.yaml."""
    root: str = ""
    """Folder that the benchmarks' paths start at, by default the working folder."""
    allow_missing: bool = False
    """Report on the pictures that are there, and mark the result as partial; `--allow-missing` alone is `true`."""
    tta: Literal["none", "flip"] = "none"
    """`flip`: the mean of the probabilities of each picture and its mirror image (test-time augmentation)."""
    output: str | None = None
    """Folder, or s3:// prefix, for predictions-NAME.csv, in a folder for each model where there are several; by default
    none are written."""
    json: str | None = None
    """File for the metrics as JSON; on s3:// too, as the page."""
    html: str | None = None
    """File for a page with the metrics, reliability and confusion figures."""
    format: Literal["text", "markdown", "csv", "json"] = "text"
    """Of the table that is printed."""
    batch_size: int = 0
    """Pictures of one forward pass of a process; 0: what is fastest and fits into memory, within reason."""
    num_workers: int = 0
    """Threads of a process that read, decode and, on a CPU, predict; 0: one for each of its cores."""
    num_draws: int = 1000
    """Bootstrap draws behind each interval."""
    seed: int = 0
    """Decides the bootstrap draws."""

    def __post_init__(self) -> None:
        for key, what in (("models", "student's folder"), ("benchmarks", "benchmark")):
            names = getattr(self, key)
            if not names:
                raise ConfigError(key, names, f"must name at least one {what}")
            if len({os.path.normpath(name) for name in names}) < len(names):
                raise ConfigError(key, names, f"must not name one {what} twice")
        require_range(self, "num_draws", least=1)
        require_range(self, "batch_size", "num_workers", "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One student on one benchmark."""

    model: str
    """The end of its path, as far as it takes to tell it from the others."""
    benchmark: Benchmark
    probabilities: np.ndarray
    """`(n, 3)`; NaN for pictures that are missing or cannot be decoded."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All students on all benchmarks; nothing on any process but the first."""

    judgements: list[Judgement]
    comparisons: list[Comparison]
    """Of each two students on each benchmark."""

    def rows(self) -> list[Row]:
        """For a table."""
        return [Row(one.model, one.benchmark.config.name, one.metrics) for one in self.judgements]

    def to_json(self) -> dict[str, Any]:
        """`{benchmark: metrics}` of a single student; of several, `{models: {model: that}, comparisons}`."""
        by_model: dict[str, dict[str, Any]] = {}
        for row in self.rows():
            by_model.setdefault(row.model, {})[row.benchmark] = row.metrics
        if len(by_model) == 1:
            return next(iter(by_model.values()))
        return {"models": by_model, "comparisons": [asdict(one) for one in self.comparisons]}


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Judge students.

    Processes of one job, as `accelerate launch` starts them, share the pictures of each benchmark. Raises UserError, on
    all of them, for a folder that is no student, a benchmark that cannot be read, or an output that cannot be written,
    before any picture is looked at; and for what any of them meets later.
    """
    models = short_names(config.models)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    # As the first process finds them: where others find other pictures, the parts would not fit together.
    benchmarks = by_first(lambda: _checked_benchmarks(config, models))
    student = by_all(lambda: _first_student(config.models))
    judgements: list[Judgement] = []

    def judge(model: str, benchmark: Benchmark, probabilities: np.ndarray) -> None:
        judgements.append(_judged(model, benchmark, probabilities, config))

    for number, (folder, model) in enumerate(zip(config.models, models, strict=True)):
        if number:
            student = by_all(partial(load_student, folder))
        if accelerator.num_processes > 1:
            require_same({"student": student_fingerprint(student)})
        for benchmark in benchmarks:
            probabilities = _predict(student, benchmark, config, accelerator)
            by_first(partial(judge, model, benchmark, probabilities))
    evaluation = Evaluation(judgements=judgements, comparisons=_comparisons(judgements, config))
    if config.json:
        by_first(partial(write_json, config.json, evaluation.to_json()))
    accelerator.end_training()
    return evaluation


def score(benchmark: Benchmark, probabilities: np.ndarray, *, num_draws: int, seed: int) -> dict[str, float]:
    """The metrics of probabilities `(n, 3)` for a benchmark's pictures; rows of NaN are left out and counted."""
    known = ~np.isnan(probabilities).any(axis=1)
    human = benchmark.scores[known]
    metrics = metrics_of(
        probabilities[known], human, is_graded=benchmark.config.is_graded, has_neutral=benchmark.config.has_neutral
    )
    return {
        "n": int((human != 0).sum()),
        **with_intervals(metrics, benchmark.groups[known], num_draws=num_draws, seed=seed),
        "left_out": int((~known & ~benchmark.missing).sum()),
        "missing": int(benchmark.missing.sum()),
        **({} if known.all() else {"partial": True}),
    }


def short_names(folders: Sequence[str]) -> list[str]:
    """The ends of paths, each as long as it takes for all to differ.

    Not `student` alone, as training calls the folder: it would not say whose.
    """
    parts = [Path(folder).parts or (folder,) for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*of_one[-max(length, 1 + (of_one[-1] == "student")) :])) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)


def predictions_csv(benchmark: Benchmark, probabilities: np.ndarray) -> bytes:
    """A row for each picture, in the order of the benchmark's table.

    Nine digits are all that a float32 has: with fewer, what a student tells apart by little would be tied in the file.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["path", *CLASSES, "human_score"])
    for path, row, human in zip(benchmark.paths, probabilities.tolist(), benchmark.scores.tolist(), strict=True):
        writer.writerow([path, *(f"{probability:.9g}" for probability in row), human])
    return file.getvalue().encode()


def _checked_benchmarks(config: EvaluateConfig, models: Sequence[str]) -> list[Benchmark]:
    """The benchmarks. Raises UserError for one that cannot be read, and for an output that cannot be written."""
    if config.output:
        _check_folders(models)
        open_output_folder(config.output)
    check_output_file("json", config.json)
    check_output_file("html", config.html)
    benchmarks = [_load(name, config) for name in config.benchmarks]
    names = [benchmark.config.name for benchmark in benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"benchmarks: two are named {name!r}", "give each benchmark file another name")
    return benchmarks


def _load(name: str, config: EvaluateConfig) -> Benchmark:
    try:
        return load_benchmark(name, root=config.root, allow_missing=config.allow_missing)
    except MissingPicturesError as error:
        if config.allow_missing:
            raise
        raise UserError(error.what, f"{error.remedy}; --allow-missing reports on those that are there") from error


def _first_student(models: Sequence[str]) -> torch.nn.Module:
    """The first of the students. Raises UserError where any of them is none."""
    student = load_student(models[0])
    for model in models[1:]:
        load_student(model)  # so that a wrong one is told now, not after hours of work with the others
    return student


def _predict(
    student: torch.nn.Module, benchmark: Benchmark, config: EvaluateConfig, accelerator: Accelerator
) -> np.ndarray:
    there = np.flatnonzero(~benchmark.missing)
    probabilities = np.full((len(benchmark.paths), len(CLASSES)), np.nan)
    probabilities[there] = predict(
        student,
        [benchmark.image_path(place) for place in there.tolist()],
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        accelerator=accelerator,
        flip=config.tta == "flip",
    )
    return probabilities


def _judged(model: str, benchmark: Benchmark, probabilities: np.ndarray, config: EvaluateConfig) -> Judgement:
    """What is to be said of probabilities `(n, 3)`, which are written where there is an output."""
    if np.isnan(probabilities).all():
        raise UserError(f"{benchmark.config.name}: none of its pictures can be decoded", "fetch the benchmark again")
    metrics = score(benchmark, probabilities, num_draws=config.num_draws, seed=config.seed)
    if config.output:
        output = open_storage(config.output, create=True)
        of_model = output.below(_folder_name(model), create=True) if len(config.models) > 1 else output
        of_model.replace(f"predictions-{benchmark.config.name}.csv", predictions_csv(benchmark, probabilities))
    return Judgement(model=model, benchmark=benchmark, probabilities=probabilities, metrics=metrics)


def _comparisons(judgements: Sequence[Judgement], config: EvaluateConfig) -> list[Comparison]:
    return [
        compare(
            (first.probabilities, second.probabilities),
            first.benchmark.scores,
            first.benchmark.groups,
            names=(first.model, second.model),
            benchmark=first.benchmark.config.name,
            num_draws=config.num_draws,
            seed=config.seed,
        )
        for first, second in itertools.combinations(judgements, 2)
        if first.benchmark is second.benchmark
    ]


def _check_folders(models: Sequence[str]) -> None:
    """Raise UserError where the predictions of two models would overwrite each other."""
    by_folder: dict[str, str] = {}
    for model in models:
        other = by_folder.setdefault(_folder_name(model), model)
        if other != model:
            raise UserError(
                f"output: {other} and {model} would both have their predictions in {_folder_name(model)}",
                "give one of them by another path or name, or evaluate them one by one, each with its own output",
            )


def _folder_name(model: str) -> str:
    return model.strip("/").replace("/", "-")
