"""`xmodal predict`: a student's probabilities for any number of pictures, as a table that comes into being by parts."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from shards.checks import require_range
from shards.errors import ConfigError
from xmodal.evaluation.pictures import Picture, check_inputs, pictures_of
from xmodal.evaluation.predict import found_batch_size, require_same
from xmodal.evaluation.prediction_files import PredictionFiles
from xmodal.evaluation.predictor import Predictor, check_finite
from xmodal.students import load_student, student_fingerprint
from xmodal.training.mistakes import another_has_failed, by_all, by_first

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_MESSAGES = 30.0
_LONGEST_WAIT = timedelta(days=7)
"""Of a process for the others."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which pictures a student judges."""

    model: str
    """Folder of an exported student, or name of one of the paper's models (see `xmodal models list`)."""
    inputs: list[str]
    """Files, folders, views, datasets, patterns of tars ({000000..000099}.tar); each local or on s3://."""
    output: str = "predictions.csv"
    """Table to write, a .csv, .jsonl or .parquet file, local or on s3://."""
    split: Literal["train", "val", "test"] | None = None
    """Of views; by default all their samples."""
    tta: Literal["none", "flip"] = "none"
    """`flip`: the mean of the probabilities of each picture and its mirror image (test-time augmentation)."""
    batch_size: int = 0
    """Pictures of one forward pass of a process; 0: what is fastest and fits into memory, within reason. A run may go
    on with another one."""
    num_workers: int = 0
    """Threads of a process that read, decode and, on a CPU, predict; 0: one for each of its cores."""
    pictures_per_part: int = 1024
    """Pictures that are kept at a time: so many, at most, are predicted again by a run that goes on."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError("inputs", self.inputs, "must name at least one file, folder, view or dataset")
        require_range(self, "batch_size", "num_workers", least=0)
        require_range(self, "pictures_per_part", least=1)


def predict_pictures(config: PredictConfig) -> dict[str, Any] | None:
    """Predict, or go on where a run that asked for the same was ended; returns the summary that lies beside the table.

    Processes of one job, as torchrun starts them, share the parts; all but the first return None. Raises UserError, on
    all of them, for what is no student, an input that holds no picture, and an output that is of something else, before
    any picture is predicted; and for what any of them meets later.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)]
    )
    files, student = by_all(lambda: (PredictionFiles(config.output), load_student(config.model)))
    by_first(lambda: check_inputs(config.inputs, config.split))
    predictor = Predictor(student, device=accelerator.device, num_threads=config.num_workers, flip=config.tta == "flip")
    # Not the batch size: a run may go on where there is less memory, and it changes rounding alone.
    asked: dict[str, Any] = {
        "student": student_fingerprint(student),
        "inputs": config.inputs,
        "split": config.split,
        "tta": config.tta,
        "pictures_per_part": config.pictures_per_part,
    }
    require_same(asked)
    summary = by_first(lambda: files.begin(asked))
    if summary is None:
        batch_size = config.batch_size or found_batch_size(student, config.pictures_per_part, accelerator)
        num_parts = by_all(lambda: predict_parts(files, predictor, config, batch_size, accelerator))
        summary = by_first(lambda: files.finish(num_parts, asked))
    elif accelerator.is_main_process:
        log.info("%s: all was predicted before", config.output)
        files.remove_parts()
    is_main_process = accelerator.is_main_process
    accelerator.end_training()
    return summary if is_main_process else None


class _Part:
    """A part that is being predicted."""

    def __init__(self, number: int, num_pictures: int) -> None:
        self.number, self.num_pictures = number, num_pictures
        self.pictures: list[Picture] = []
        self.probabilities: list[np.ndarray] = []
        self.failures: dict[int, str] = {}


def predict_parts(
    files: PredictionFiles, predictor: Predictor, config: PredictConfig, batch_size: int, accelerator: Accelerator
) -> int:
    """Predict and write what is this process's and is not there; returns how many parts there are of all.

    Begins no other part once another process has failed; then the number is none.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    begun: deque[_Part] = deque()
    num_parts = 0

    def batches() -> Iterator[Sequence[Picture]]:
        nonlocal num_parts
        remaining = pictures_of(config.inputs, config.split)
        while pictures := list(islice(remaining, config.pictures_per_part)):
            number, num_parts = num_parts, num_parts + 1
            if number % world_size != rank:
                continue
            if another_has_failed():
                return
            if files.has_part(number, pictures):
                continue
            begun.append(_Part(number, len(pictures)))
            for start in range(0, len(pictures), batch_size):
                yield pictures[start : start + batch_size]

    progress = _Progress()
    with files.noticing_another_run():
        for batch in predictor(batches()):
            check_finite(batch.is_finite)
            part = begun[0]
            part.failures |= {len(part.pictures) + place: why for place, why in batch.failures.items()}
            part.pictures += batch.pictures
            part.probabilities.append(batch.probabilities)
            progress.add(batch.pictures, batch.failures)
            if len(part.pictures) == part.num_pictures:
                files.write_part(part.number, part.pictures, np.concatenate(part.probabilities), part.failures)
                begun.popleft()
    return num_parts


class _Progress:
    """Says now and then how far this process is."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._num_pictures = 0

    def add(self, pictures: Sequence[Picture], failures: dict[int, str]) -> None:
        """Count a batch."""
        for place, why in failures.items():
            picture = pictures[place]
            log.warning("%s%s: %s", picture.path, f": {picture.key}" if picture.key else "", why)
        self._num_pictures += len(pictures)
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_MESSAGES:
            self._last = now
            log.info("%d pictures, %.1f a second", self._num_pictures, self._num_pictures / (now - self._start))
