"""A student, fine-tuned and judged on each division of a benchmark, one after another, by all ranks of a job.

`<output>/config.json` and `model.sha256` are what the run was begun with; `pictures-…/` the benchmark as shards,
`divisions.csv` which of them are in which part. Each division has a folder: its view, the trainer's own files,
`student/` and, once all of it is done, `predictions.csv`. A run that was cut off goes on in the first division without
those, from its last checkpoint.
"""

import fcntl
import gc
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from shards.errors import UserError
from shards.storage import LocalStorage
from xmodal.benchmarks import Benchmark, definition_of, load_benchmark, load_definition
from xmodal.curation.near_duplicates import pack_hashes
from xmodal.evaluation.evaluate import predictions_csv
from xmodal.evaluation.output_files import check_output_file, write_json
from xmodal.evaluation.predict import predict
from xmodal.finetuning.config import MAY_CHANGE, CrossvalConfig, FinetuneConfig, FinetuneFiConfig
from xmodal.finetuning.divisions import (
    FILE,
    Divisions,
    fold_divisions,
    given_divisions,
    linked_groups,
    read_divisions,
    table_fingerprint,
    write_divisions,
)
from xmodal.finetuning.pictures import read_pictures, write_division_view, write_pictures
from xmodal.finetuning.summary import Summary, read_predictions, summarise
from xmodal.students import has_mlp_head, input_spec, load_student, student_fingerprint, student_folder
from xmodal.training.config import TrainConfig
from xmodal.training.job import joined_ranks
from xmodal.training.mistakes import by_all, by_first
from xmodal.training.pinned_config import check_pinned_config, pin_config
from xmodal.training.ranks import limit_waiting
from xmodal.training.stop import StopRequest
from xmodal.training.train import train_within

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
"""Of a division; written last, so that it says that the division is done."""
_WEIGHTS = "model.sha256"
"""Of the student to start from: a folder may be that of another one by the time that a run goes on."""
_PREPARING_SECONDS = 6 * 3600.0
"""That other ranks wait, at most, for the first one to have looked at all pictures."""

Divide = Callable[[Benchmark, np.ndarray, np.ndarray], Divisions]
"""From pictures, their groups int64 `(n,)`, and which can be decoded, bool `(n,)`, to their divisions."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of a run."""

    is_finished: bool
    """False where it was asked to stop; then a checkpoint was made."""
    summary: Summary | None = None
    """Of a finished one, on the first rank."""


def cross_validate(config: CrossvalConfig) -> Outcome:
    """Fine-tune a student on all folds but one, and judge it on that one, for each of them.

    Raises UserError for a student, a benchmark or settings that do not go together, or that are not those that the run
    was begun with, and where another rank is lost.
    """

    def divide(benchmark: Benchmark, groups: np.ndarray, is_decodable: np.ndarray) -> Divisions:
        return fold_divisions(benchmark, groups, is_decodable, num_folds=config.num_folds, seed=config.fold_seed)

    return _finetune(config, divide, Path("runs/crossval"))


def finetune_on_splits(config: FinetuneFiConfig) -> Outcome:
    """Fine-tune and judge a student on each of the divisions that come with a benchmark. Raises as `cross_validate`."""
    source = definition_of(config.benchmark)
    if not load_definition(config.benchmark).splits:
        raise UserError(f"{source}: splits: there are none", "give a benchmark that has some, or use `xmodal crossval`")

    def divide(benchmark: Benchmark, groups: np.ndarray, is_decodable: np.ndarray) -> Divisions:
        return given_divisions(benchmark, groups, is_decodable, source)

    return _finetune(config, divide, Path("runs/finetune-fi"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raise UserError where another run of this machine, or of one that shares the file system's locks, has a folder.

    A lock is not left behind by a run that is killed: unlike one of flock, it is not that of its reading processes too,
    which live on for some seconds.
    """
    LocalStorage(folder, create=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{folder}: another run is at it", "let it end, or give another `output` folder") from error
        yield


@contextmanager
def _accelerator() -> Iterator[Accelerator]:
    try:
        yield Accelerator(cpu=dist.get_backend() == "gloo")
    finally:
        # It would have whatever this process evaluates later wait for ranks that have parted.
        AcceleratorState._reset_state(reset_partial_state=True)


def _finetune(config: FinetuneConfig, divide: Divide, default_folder: Path) -> Outcome:
    check_output_file("json", config.json)
    benchmark = load_benchmark(config.benchmark, root=config.root)
    num_rows = len(benchmark.paths)
    if not benchmark.config.has_neutral:
        benchmark = benchmark.subset(np.flatnonzero(benchmark.scores != 0))
    folder = Path(config.output or default_folder / benchmark.config.name)
    check_pinned_config(folder, config, MAY_CHANGE)
    train = division_config(config, benchmark, folder)
    with joined_ranks(train.peer_timeout) as ranks, ExitStack() as held:
        by_first(lambda: held.enter_context(_locked(folder)))
        limit_waiting(_PREPARING_SECONDS)
        by_first(lambda: _prepare(config, benchmark, divide, folder))
        limit_waiting(train.peer_timeout)
        divisions = by_all(lambda: read_divisions(folder, benchmark))
        # Where no launcher has set it, Accelerate would, with a warning, to what torch has by itself.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        accelerator = held.enter_context(_accelerator())
        # By the first rank for all: others may see an older listing.
        for number in by_first(lambda: _left_to_do(divisions, folder)):
            name = divisions.names[number]
            log.info("%s of %d", name, len(divisions.names))
            if not train_within(replace(train, view=str(folder / name / "view"), output=str(folder / name)), ranks):
                return Outcome(is_finished=False)
            dist.barrier()  # the first rank has exported the student
            tested = benchmark.subset(np.flatnonzero(divisions.parts[number] == "test"))
            _predict(config, tested, folder / name, accelerator)
    if not ranks.is_first:
        return Outcome(is_finished=True)
    StopRequest(Path(train.stop_file)).answered()  # which came too late
    summary = summarise(
        divisions,
        benchmark,
        [read_predictions(folder / name / PREDICTIONS) for name in divisions.names],
        model=config.model,
        num_unjudged=num_rows - len(benchmark.paths),
        num_draws=config.num_draws,
        seed=config.seed,
    )
    write_json(folder / "result.json", summary.to_json())
    if config.json:
        write_json(config.json, {benchmark.config.name: summary.held_out})
    return Outcome(is_finished=True, summary=summary)


def division_config(config: FinetuneConfig, benchmark: Benchmark, folder: Path) -> TrainConfig:
    """What all divisions of a run in `folder` are trained by; each has a view and an output of its own.

    Raises UserError for a model that is no student.
    """
    train, student = config.train, load_student(config.model)
    spec = input_spec(student, train.student.eval_crop_share, train.student.eval_squash)
    is_whole = train.augment.min_crop_area == train.augment.max_crop_aspect == 1
    # A plain one, in which view and output can be given.
    plain = TrainConfig(**{one.name: getattr(train, one.name) for one in fields(TrainConfig)})
    return replace(
        plain,
        student=replace(
            train.student,
            model=f"local-dir:{os.path.abspath(student_folder(config.model))}",
            pretrained=True,
            head="mlp" if has_mlp_head(student) else "linear",
        ),
        augment=replace(train.augment, squash=spec.squash) if is_whole else train.augment,
        loss=replace(train.loss, neutral="kept") if benchmark.config.has_neutral else train.loss,
        stop_file=train.stop_file or str(folder / "stop"),
    )


def _prepare(config: FinetuneConfig, benchmark: Benchmark, divide: Divide, folder: Path) -> None:
    """Write pictures, divisions and their views; `divisions.csv` comes last, and what follows it was done before."""
    weights = student_fingerprint(load_student(config.model)).encode()
    if (folder / FILE).exists():
        check_pinned_config(folder, config, MAY_CHANGE)  # again: another run may have begun since
        _check_unchanged(config, benchmark, divide, folder, weights)
        return
    storage = LocalStorage(folder, create=True)
    # Of the table that it is of: what was left by a run that was killed before may be of another one.
    dataset = folder / f"pictures-{table_fingerprint(benchmark)[:12]}"
    write_pictures(benchmark, dataset)
    pictures = read_pictures(dataset)
    places = pictures["place"].to_numpy()
    is_decodable = np.isin(np.arange(len(benchmark.paths)), places)
    try:
        if not is_decodable.any():
            raise UserError(
                f"{benchmark.config.name}: none of its pictures can be decoded", "fetch the benchmark again"
            )
        groups = linked_groups(benchmark.groups, pack_hashes(pictures["pdq"].to_pylist()), places)
        divisions = divide(benchmark, groups, is_decodable)
    except UserError:
        if not is_decodable.all():
            shutil.rmtree(dataset)  # once they are fetched again, they are to be looked at again
        raise
    for name, parts in zip(divisions.names, divisions.parts, strict=True):
        write_division_view(folder / name / "view", benchmark, dataset, pictures, parts)
    pin_config(folder, config)
    storage.replace(_WEIGHTS, weights)
    write_divisions(folder, benchmark, divisions)


def _check_unchanged(
    config: FinetuneConfig, benchmark: Benchmark, divide: Divide, folder: Path, weights: bytes
) -> None:
    """Raise UserError for a student, or divisions, that are not those that the run was begun with."""
    if (folder / _WEIGHTS).read_bytes() != weights:
        raise UserError(
            f"{config.model}: is another student, by its weights, than the one that {folder} was begun with",
            "bring that one back, or give a new `output` folder",
        )
    begun = read_divisions(folder, benchmark)
    if not np.array_equal(divide(benchmark, begun.groups, begun.is_decodable).parts, begun.parts):
        raise UserError(
            f"{folder / FILE}: its divisions are not those of {benchmark.config.name} any more",
            "bring back the tables that the run was begun with, or give a new `output` folder",
        )


def _left_to_do(divisions: Divisions, folder: Path) -> list[int]:
    """The divisions without predictions."""
    left = []
    for number, name in enumerate(divisions.names):
        if (folder / name / PREDICTIONS).exists():
            _drop_checkpoints(folder / name)
        else:
            left.append(number)
    return left


def _predict(config: FinetuneConfig, tested: Benchmark, folder: Path, accelerator: Accelerator) -> None:
    """Write what a division's student says of the pictures that were held out, with their paths."""
    gc.collect()  # the trainer's engine, which is a cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    probabilities = predict(
        by_all(lambda: load_student(str(folder / "student"))),
        [tested.image_path(place) for place in range(len(tested.paths))],
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        accelerator=accelerator,
    )

    def write() -> None:
        LocalStorage(folder).replace(PREDICTIONS, predictions_csv(tested, probabilities))
        _drop_checkpoints(folder)

    by_first(write)


def _drop_checkpoints(folder: Path) -> None:
    """They are three times as large as the student, and nothing goes on from them any more."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
