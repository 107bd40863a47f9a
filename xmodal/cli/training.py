"""Verbs about training and what comes out of it."""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from xmodal.cli.arguments import named, print_table, read_config

if TYPE_CHECKING:
    from xmodal.finetuning.run import Outcome

T = TypeVar("T")


def train(arguments: list[str]) -> int:
    """View → student: train by DeepSpeed; `deepspeed launch/train.py` does the same on many ranks.

    Ends with exit code 75 where it was asked to stop (SIGTERM, or the stop file) and can go on. `--dry-run` says what
    the run would do, the memory that it takes, and how long by a step that is really done, and writes nothing.
    """
    _silence_sockets()
    from xmodal.training.config import TrainConfig

    # As other tools spell it, and as our settings are spelt.
    others = [argument for argument in arguments if argument not in ("--dry-run", "--dry_run")]
    is_dry_run = len(others) < len(arguments)
    config = read_config(TrainConfig, others, train)
    _use_processors_without_gpu()
    if is_dry_run:
        from xmodal.training.dry_run import dry_run

        dry_run(config, partial(print, flush=True))
        return 0
    from xmodal.training.stop import EXIT_STOPPED
    from xmodal.training.train import train as run

    return 0 if run(config) else EXIT_STOPPED


def export(arguments: list[str]) -> None:
    """Checkpoint → student: a timm folder with a model card; also to the hub and as ONNX (`xmodal export RUN OUT`)."""
    _use_processors_without_gpu()
    from xmodal.training.export import ExportConfig
    from xmodal.training.export import export as run

    # As the hub's own tools spell it.
    spelt = [argument.replace("--push-to-hub", "--push_to_hub", 1) for argument in arguments]
    config = read_config(ExportConfig, named(spelt, "checkpoint", "output"), export)
    summary = run(config)
    rows: list[tuple[str, object]] = [
        ("from", f"{summary.checkpoint}, step {summary.step}"),
        ("weights", f"{summary.weights}, {summary.num_parameters:,}"),
    ]
    if summary.onnx_difference is not None:
        rows.append(("model.onnx", f"its logits differ from the student's by {summary.onnx_difference:.1e} at most"))
    if summary.url:
        rows.append(("uploaded", summary.url))
    print_table(f"Student {os.path.abspath(config.output)}", rows)


def crossval(arguments: list[str]) -> int:
    """Student, benchmark → students fine-tuned by cross-validation (`xmodal crossval -m STUDENT -b BENCHMARK`).

    `deepspeed launch/crossval.py` does the same on many ranks. What is not given is as in
    configs/finetune/five_fold.yaml: the paper's. Ends with exit code 75 where it was asked to stop and can go on.
    """
    _silence_sockets()
    from xmodal.finetuning.config import CrossvalConfig

    config = _read_finetuning(CrossvalConfig, arguments, crossval, recipe="five_fold")
    from xmodal.finetuning.run import cross_validate

    return _tell(cross_validate(config))


def finetune_fi(arguments: list[str]) -> int:
    """Student → students fine-tuned on given divisions, by default FI's five (`xmodal finetune-fi -m STUDENT`).

    `deepspeed launch/finetune_fi.py` does the same on many ranks. What is not given is as in
    configs/finetune/given_splits.yaml: the paper's. Ends with exit code 75 where it was asked to stop and can go on.
    """
    _silence_sockets()
    from xmodal.finetuning.config import FinetuneFiConfig

    config = _read_finetuning(FinetuneFiConfig, arguments, finetune_fi, recipe="given_splits")
    from xmodal.finetuning.run import finetune_on_splits

    return _tell(finetune_on_splits(config))


def _read_finetuning(
    config_class: type[T], arguments: list[str], verb: Callable[[list[str]], int], *, recipe: str
) -> T:
    """The settings of a verb that fine-tunes, those of the recipe where they are not given; DeepSpeed comes next."""
    from xmodal.finetuning.config import recipe_file

    spelt = [{"-m": "--model", "-b": "--benchmark"}.get(argument, argument) for argument in arguments]
    config = read_config(config_class, [f"--config={recipe_file(recipe)}", *spelt], verb)
    _use_processors_without_gpu()
    return config


def _tell(outcome: "Outcome") -> int:
    if not outcome.is_finished:
        from xmodal.training.stop import EXIT_STOPPED

        return EXIT_STOPPED
    if outcome.summary:
        from xmodal.finetuning.summary import summary_text

        print(summary_text(outcome.summary))
    return 0


def _silence_sockets() -> None:
    """Before torch is there: its sockets warn where an address has no name, as on many a cluster's inner network."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _use_processors_without_gpu() -> None:
    """Tell DeepSpeed so before it is imported, where it would look for a GPU, and warn."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
