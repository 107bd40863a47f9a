"""Student and benchmarks → metrics with intervals, and predictions with their paths."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from shards.checks import require_range
from shards.errors import ConfigError, UserError
from shards.storage import LocalStorage
from xmodal.benchmarks import Benchmark, load_benchmark
from xmodal.evaluation.json_file import write_json
from xmodal.evaluation.metrics import polarity_of, with_intervals
from xmodal.evaluation.predict import predict
from xmodal.labels import CLASSES
from xmodal.students import load_student

Results = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which student is judged by which benchmarks."""

    student: str
    """Folder of an exported student."""
    benchmarks: list[str]
    """Benchmark files, such as configs/benchmarks/emoji.yaml."""
    output: str | None = None
    """Folder for predictions-NAME.csv; by default none are written."""
    json: str | None = None
    """File for the metrics as JSON."""
    batch_size: int = 64
    """Pictures of one forward pass of a process."""
    num_workers: int = 0
    """Processes that decode, per process that predicts."""
    num_draws: int = 1000
    """Bootstrap draws behind each interval."""
    seed: int = 0
    """Decides the bootstrap draws."""

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ConfigError("benchmarks", self.benchmarks, "must name at least one benchmark file")
        require_range(self, "batch_size", "num_draws", least=1)
        require_range(self, "num_workers", "seed", least=0)


def evaluate(config: EvaluateConfig) -> Results:
    """Judge a student. Returns `{benchmark: metrics}` on the first process, nothing on the others.

    Raises UserError for a folder that is no student, a benchmark that cannot be read, or an output that cannot be
    written: before any picture is looked at.
    """
    output = LocalStorage(config.output, create=True) if config.output else None
    if config.json:
        if Path(config.json).is_dir():
            raise UserError(f"json: {config.json}: is a folder", "give a file")
        LocalStorage(Path(config.json).parent, create=True)
    benchmarks = [load_benchmark(file) for file in config.benchmarks]
    names = [benchmark.config.name for benchmark in benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"benchmarks: two are named {name!r}", "give each benchmark file another name")
    student = load_student(config.student)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    results: Results = {}
    for benchmark in benchmarks:
        paths = [benchmark.image_path(place) for place in range(len(benchmark.paths))]
        probabilities = predict(
            student, paths, batch_size=config.batch_size, num_workers=config.num_workers, accelerator=accelerator
        )
        if np.isnan(probabilities).all():  # asked on all processes, so that none waits for one that has ended
            raise UserError(
                f"{benchmark.config.name}: none of its pictures can be decoded", "fetch the benchmark again"
            )
        if not accelerator.is_main_process:
            continue
        results[benchmark.config.name] = score(benchmark, probabilities, num_draws=config.num_draws, seed=config.seed)
        if output:
            output.replace(f"predictions-{benchmark.config.name}.csv", _predictions_csv(benchmark, probabilities))
    if accelerator.is_main_process and config.json:
        write_json(Path(config.json), results)
    accelerator.end_training()
    return results


def score(benchmark: Benchmark, probabilities: np.ndarray, *, num_draws: int, seed: int) -> dict[str, float]:
    """The metrics of probabilities `(n, 3)` for a benchmark's pictures; rows of NaN are left out and counted."""
    decoded = ~np.isnan(probabilities).any(axis=1)
    metrics = with_intervals(
        polarity_of(probabilities[decoded]),
        benchmark.scores[decoded],
        benchmark.groups[decoded],
        num_draws=num_draws,
        seed=seed,
    )
    return {**metrics, "left_out": int((~decoded).sum())}


def _predictions_csv(benchmark: Benchmark, probabilities: np.ndarray) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["path", *CLASSES, "human_score"])
    for path, row, human in zip(benchmark.paths, probabilities.tolist(), benchmark.scores.tolist(), strict=True):
        writer.writerow([path, *(f"{probability:.6f}" for probability in row), human])
    return file.getvalue().encode()
