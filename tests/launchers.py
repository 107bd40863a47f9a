"""Start training as users do, by a launcher in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.training.metrics_file import NAME as METRICS_FILE
from xmodal.training.metrics_file import read_metrics

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TINY_MODEL_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_STUDENT = (
    "--student.model=vit_tiny_patch16_224",
    "--student.pretrained=false",
    f"--student.model_args={json.dumps(TINY_MODEL_ARGS)}",
)


def settings(view: Path | str, output: Path, *more: str) -> list[str]:
    """A tiny run: global batches of 16 in 8 lanes, a line for every step."""
    return [
        f"--view={view}", f"--output={output}", *TINY_STUDENT, "--stream.num_lanes=8", "--stream.num_workers=0",
        "--global_batch_size=16", "--log_every_steps=1", "--epochs=1", *more,
    ]  # fmt: skip


def command(launcher: str, arguments: Sequence[str], program: str = "launch/train.py") -> list[str]:
    """The command line of `python`, `deepspeed` (2 ranks) or `torchrun` (2 ranks)."""
    start = {
        "python": [sys.executable],
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", f"--master_port={free_port()}"],
        "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", f"--master-port={free_port()}"],
    }[launcher]
    return [*start, program, *arguments]


def environment() -> dict[str, str]:
    """This process's, with the tests' own Python first on the path and one thread a rank."""
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


def launch(
    launcher: str, arguments: Sequence[str], program: str = "launch/train.py"
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    with start(launcher, arguments, program) as process:
        try:
            output, _ = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def start(
    launcher: str, arguments: Sequence[str], program: str = "launch/train.py", **variables: str
) -> subprocess.Popen[str]:
    """Start in a process group of its own, so that it can be ended with all its children."""
    return start_command(command(launcher, arguments, program), **variables)


def start_ranks(
    arguments: Sequence[Sequence[str]], program: str = "launch/train.py", **variables: str
) -> list[subprocess.Popen[str]]:
    """Start a rank for each list of arguments by hand: a launcher may end one rank before it can speak."""
    job = {"WORLD_SIZE": str(len(arguments)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start("python", of_rank, program, RANK=str(rank), LOCAL_RANK=str(rank), **job, **variables)
        for rank, of_rank in enumerate(arguments)
    ]


def wait_for_ranks(ranks: Sequence[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Their exit codes and outputs, once all have ended."""
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return [process.returncode for process in ranks], outputs


def told_by_ranks(arguments: Sequence[Sequence[str]], program: str) -> list[str]:
    """What each rank says, on processors, of a mistake that ends all of them in order."""
    codes, outputs = wait_for_ranks(start_ranks(arguments, program, CUDA_VISIBLE_DEVICES=""))
    assert codes == [2] * len(arguments), outputs
    assert "Traceback" not in "".join(outputs)
    return outputs


def wait_for_step(output: Path, step: int, ranks: Sequence[subprocess.Popen[str]], since: float = 0.0) -> None:
    """Wait until the run in `output` has done so many steps, whose last lines were written `since` then.

    Its ranks must be running.
    """
    deadline = time.monotonic() + 200
    file = output / METRICS_FILE
    # In this order: a run that goes on takes away the steps that it does again.
    while not (file.exists() and file.stat().st_mtime > since and (done := steps(output)) and done[-1]["step"] >= step):
        assert time.monotonic() < deadline
        for process in ranks:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def start_program(program: str, arguments: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    """Start a program of the tests, by its path in the project, likewise."""
    # Run by its path, it has its own folder first on the path of imports, and the project's must be told.
    return start_command([sys.executable, program, *arguments], **(variables | {"PYTHONPATH": str(ROOT)}))


def start_command(command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    """Start a command line in the project's folder, likewise."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_in_turn(num_ranks: int, runs: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """Train several runs to their ends, one after another, by ranks that start and meet once; returns what each says.

    A run is a list of arguments; a file in `folder` tells them to the ranks.
    """
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    ranks = start_ranks([[str(file)]] * num_ranks, "tests/training_program.py", PYTHONPATH=str(ROOT))
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [0] * num_ranks, outputs
    return outputs


def losses(output: Path) -> list[float]:
    """The training loss of every step."""
    return [line["loss"] for line in steps(output)]


def steps(output: Path) -> list[dict[str, Any]]:
    """The step lines of metrics.jsonl."""
    return [line for line in read_metrics(output) if line["kind"] == "step"]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
