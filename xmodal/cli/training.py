"""Verbs about training and what comes out of it."""

import os
from functools import partial

from xmodal.cli.arguments import named, print_table, read_config


def train(arguments: list[str]) -> int:
    """View → student: train by DeepSpeed; `deepspeed launch/train.py` does the same on many ranks.

    Ends with exit code 75 where it was asked to stop (SIGTERM, or the stop file) and can go on. `--dry-run` says what
    the run would do, the memory that it takes, and how long by a step that is really done, and writes nothing.
    """
    # Before torch is there, whose sockets warn where an address has no name, as on many a cluster's inner network.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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


def _use_processors_without_gpu() -> None:
    """Tell DeepSpeed so before it is imported, where it would look for a GPU, and warn."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
