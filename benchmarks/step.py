"""Training steps, images/s: our trainer against its own engine alone, bare PyTorch, and timm's train.py.

    python benchmarks/step.py --quick --json step.json
    python benchmarks/step.py --timm ~/pytorch-image-models --json step.json
    python benchmarks/step.py --contenders xmodal --models ViT_L16 --ranks 2 --batch-size 1 --rounds 1

The last one takes some minutes and tells the memory of a rank at each ZeRO stage, of which it needs 8 GB, beside what
the formula predicts.

- `xmodal ZeRO-n`: `launch/train.py` as a user starts it, on a view of JPEGs (600 by 450 pixels, random crops of 224,
  half of them mirrored), with its stream, its log, its checks. Figures are those of its metrics.jsonl.
- `engine ZeRO-n`: the same DeepSpeed engine and config in a loop of three lines, on one batch that is made once.
- `torch`: a plain loop on such a batch, with fused AdamW and bf16 autocast; DDP where there are several ranks.
- `timm`: its own train.py on a folder of the same JPEGs, with the same crops, AdamW and bf16 autocast. PyPI's package
  lacks that script: give a checkout of https://github.com/huggingface/pytorch-image-models, which is then run with its
  own timm. It has one rank here where there is no GPU, since it asks DDP for one.

All train the same student from random weights in bf16, clip gradients, and share the cores equally between ranks.
ViT-L runs with gradient checkpointing, as its recipe does. Each contender is a process of its own in each round.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import loader_pictures
import report_file
import torch
from safetensors import safe_open
from step_loops import MAX_GRAD_NORM, RATE, WEIGHT_DECAY, Plan

from shards.view import open_view
from xmodal.students import PRESETS, StudentConfig, create_student, input_spec
from xmodal.training.costs import activation_bytes, num_parameters, rank_memory
from xmodal.training.metrics_file import read_metrics
from xmodal.training.ranks import free_port

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CONTENDERS = ("xmodal", "engine", "torch", "timm")
WITH_STAGES = ("xmodal", "engine")
RECOMPUTED = ("ViT_L16", "ViT_L32")
"""Models with gradient checkpointing."""
MIN_CROP_AREA, MAX_CROP_ASPECT = 0.08, 4 / 3
IMAGES_PER_SECOND, WAIT, MEMORY, PARAMETERS = "images_per_second", "data_wait_percent", "memory_gib", "parameters"
PREDICTED = "memory_gib_predicted"
"""By the formula of `xmodal train --dry-run`: without the libraries, which are about 1 GiB of a process on a CPU."""
Figures = dict[str, float]


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    arguments = parse_arguments()
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="step-", dir=arguments.folder) as folder:
        for model in arguments.models:
            for num_ranks in arguments.ranks:
                case = Case(arguments, model, num_ranks, Path(folder))
                case.make_pictures()
                run_rounds(case, arguments.rounds, results)
    work = (
        f"{', '.join(arguments.models)} at their own size, bf16, {arguments.batch_size} images a rank a step, "
        f"{arguments.warm_up_steps} steps to begin with and {arguments.steps} counted, {arguments.workers} reading "
        f"processes a rank, {arguments.rounds} rounds"
    )
    if arguments.timm:
        work += f"; timm's train.py of {version_of(arguments.timm)}"
    packages = ("torch", "deepspeed", "timm", "xmodal")
    report_file.write(report_file.report("step", work, packages, results, ratios(results)), arguments.json)


def parse_arguments() -> argparse.Namespace:
    """What is asked for; `--quick` changes what is not given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="ViT-B/16 alone, 1 rank, no ZeRO, 16 images a step, 3 rounds: ten minutes"
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", help="where to write pictures and students, some gigabytes; by default /tmp")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="by default all, timm if --timm is given")
    parser.add_argument("--timm", type=Path, help="folder of a checkout of timm, with its train.py")
    parser.add_argument("--models", nargs="+", help="presets, or names of timm; by default ViT_B16 and ViT_L16")
    parser.add_argument("--ranks", nargs="+", type=int, help="numbers of ranks; by default 1 and 2")
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), help="of ZeRO; by default all")
    parser.add_argument("--batch-size", type=int, help="images of a rank in a step; by default 64")
    parser.add_argument("--warm-up-steps", type=int, help="by default 2")
    parser.add_argument("--steps", type=int, help="counted in a round, by default 3")
    parser.add_argument("--rounds", type=int, help="by default 5")
    parser.add_argument("--workers", type=int, default=1, help="reading processes of a rank")
    arguments = parser.parse_args()
    full = {
        "models": ["ViT_B16", "ViT_L16"], "ranks": [1, 2], "stages": [0, 1, 2, 3], "batch_size": 64,
        "warm_up_steps": 2, "steps": 3, "rounds": 5, "contenders": CONTENDERS if arguments.timm else CONTENDERS[:-1],
    }  # fmt: skip
    quick = {"models": ["ViT_B16"], "ranks": [1], "stages": [0], "batch_size": 16, "warm_up_steps": 1, "rounds": 3}
    for name, value in (full | quick if arguments.quick else full).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if "timm" in arguments.contenders and not (arguments.timm and (arguments.timm / "train.py").is_file()):
        parser.error("--contenders timm needs --timm, the folder of a checkout with its train.py")
    return arguments


class Case:
    """A model on a number of ranks: what is run for it, and where."""

    def __init__(self, arguments: argparse.Namespace, model: str, num_ranks: int, folder: Path) -> None:
        self.name = f"{model} on {num_ranks} rank{'s' if num_ranks > 1 else ''}"
        self.num_ranks, self.num_workers = num_ranks, arguments.workers
        self.folder = folder / self.name.replace(" ", "-")
        self.on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        self.timm_folder: Path | None = arguments.timm
        self.plan = Plan(
            model=model,
            gradient_checkpointing=model in RECOMPUTED,
            batch_size=arguments.batch_size,
            warm_up_steps=arguments.warm_up_steps,
            counted_steps=arguments.steps,
        )
        self.contenders: list[tuple[str, int | None]] = []
        for contender in arguments.contenders:
            if contender == "timm" and num_ranks > 1 and not self.on_gpu:
                print(f"{self.name}: no timm: its train.py has DDP on GPUs alone", flush=True)
            else:
                stages = arguments.stages if contender in WITH_STAGES else [None]
                self.contenders += [(contender, stage) for stage in stages]

    @property
    def num_steps(self) -> int:
        """Of a run."""
        return self.plan.warm_up_steps + self.plan.counted_steps

    @property
    def global_batch_size(self) -> int:
        """Images of a step over all ranks."""
        return self.plan.batch_size * self.num_ranks

    def make_pictures(self) -> None:
        """A dataset and its view, and the same pictures in folders by their classes, as timm wants them."""
        # One step more than are taken: what ends with an epoch is none of the steps.
        loader_pictures.make_dataset(self.folder, 600, 450, 8, -(-(self.num_steps + 1) * self.global_batch_size // 8))
        if self.timm_folder is None:
            return
        view = open_view(str(self.folder / "view"))
        for number, row in enumerate(view.table.slice(0, self.num_steps * self.global_batch_size).to_pylist()):
            content = view.datasets[row["dataset"]].read_range(row["shard"], row["image_offset"], row["image_length"])
            label = max(range(3), key=row["target"].__getitem__) if number >= 3 else number  # no class is empty
            file = self.folder / "classes" / "train" / str(label) / f"{row['key']}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def run(self, contender: str, stage: int | None) -> Figures:
        """The figures of one run. Raises SystemExit if it fails."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            runner = {"xmodal": self._run_xmodal, "timm": self._run_timm}.get(contender)
            return runner(stage, Path(folder)) if runner else self._run_loop(contender, stage, Path(folder))

    def _run_xmodal(self, stage: int | None, folder: Path) -> Figures:
        plan = self.plan
        arguments = [
            str(ROOT / "launch" / "train.py"),
            f"--view={self.folder / 'view'}", f"--output={folder}", f"--deepspeed={deepspeed_config(stage)}",
            f"--student.model={plan.model}", "--student.pretrained=false",
            f"--student.gradient_checkpointing={str(plan.gradient_checkpointing).lower()}",
            f"--augment.min_crop_area={MIN_CROP_AREA}", f"--augment.max_crop_aspect={MAX_CROP_ASPECT}",
            f"--stream.num_lanes={math.gcd(64, self.global_batch_size)}", f"--stream.num_workers={self.num_workers}",
            f"--optimizer.lr={RATE}", f"--optimizer.weight_decay={WEIGHT_DECAY}",
            f"--optimizer.max_grad_norm={MAX_GRAD_NORM}", f"--global_batch_size={self.global_batch_size}",
            f"--max_steps={self.num_steps}", "--log_every_steps=1", "--checkpoint_every_epochs=0",
        ]  # fmt: skip
        self._launch("deepspeed", arguments)
        lines = [line for line in read_metrics(folder) if line["kind"] == "step"][self.plan.warm_up_steps :]
        if len(lines) != plan.counted_steps or any(line["loss"] is None or line["skipped"] for line in lines):
            raise SystemExit(f"our trainer has not done {plan.counted_steps} whole steps: {lines}")
        seconds = [self.global_batch_size / line[IMAGES_PER_SECOND] for line in lines]
        waited = sum(line["data_wait_share"] * took for line, took in zip(lines, seconds, strict=True))
        with safe_open(folder / "student" / "model.safetensors", "pt") as file:
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        return {
            IMAGES_PER_SECOND: plan.counted_steps * self.global_batch_size / sum(seconds),
            WAIT: 100 * waited / sum(seconds),
            MEMORY: lines[-1][MEMORY],
            PREDICTED: self._predicted_memory(stage or 0) / 2**30,
            PARAMETERS: parameters,
        }

    def _predicted_memory(self, stage: int) -> float:
        plan = self.plan
        student = create_student(
            StudentConfig(model=plan.model, pretrained=False, gradient_checkpointing=plan.gradient_checkpointing)
        )
        activations = activation_bytes(student, input_spec(student).size, plan.batch_size, torch.bfloat16)
        zero = json.loads(Path(deepspeed_config(stage)).read_text())["zero_optimization"]
        return rank_memory(
            num_parameters(student),
            stage=stage,
            world_size=self.num_ranks,
            has_average=False,
            activations=activations or 0,
            bucket_elements=int(zero.get("reduce_bucket_size", 0)),
        ).total

    def _run_loop(self, contender: str, stage: int | None, folder: Path) -> Figures:
        plan = self.plan if stage is None else dataclasses.replace(self.plan, deepspeed=deepspeed_config(stage))
        script = str(Path(__file__).with_name("step_loops.py"))
        file = folder / "figures.json"
        launcher = "torchrun" if contender == "torch" else "deepspeed"
        self._launch(launcher, [script, contender, json.dumps(dataclasses.asdict(plan)), str(file)])
        return json.loads(file.read_text())

    def _run_timm(self, _: int | None, folder: Path) -> Figures:
        assert self.timm_folder is not None
        plan = self.plan
        arguments = [
            str(self.timm_folder.resolve() / "train.py"), "--data-dir", str(self.folder / "classes"), "--val-split", "",
            "--output", str(folder), "--model", PRESETS.get(plan.model, plan.model).partition(".")[0],
            "--num-classes", "3", "--batch-size", str(plan.batch_size), "--epochs", "1", "--warmup-epochs", "0",
            "--opt", "adamw", "--lr", str(RATE), "--weight-decay", str(WEIGHT_DECAY), "--clip-grad", str(MAX_GRAD_NORM),
            "--amp", "--amp-dtype", "bfloat16", "--device", "cuda" if self.on_gpu else "cpu", "--smoothing", "0",
            "--scale", str(MIN_CROP_AREA), "1", "--ratio", str(1 / MAX_CROP_ASPECT), str(MAX_CROP_ASPECT),
            "--color-jitter", "0", "--train-interpolation", "bicubic", "--workers", str(self.num_workers),
            "--log-interval", "1", "--checkpoint-hist", "1",
            *(["--grad-checkpointing"] if plan.gradient_checkpointing else []),
        ]  # fmt: skip
        log, peak_gib = self._launch("torchrun", arguments)
        lines = _TIMM_STEP.findall(log)[plan.warm_up_steps :]
        if len(lines) != plan.counted_steps:
            raise SystemExit(f"timm's train.py has not done {plan.counted_steps} steps:\n{log[-4000:]}")
        seconds, waited = (sum(float(line[number]) for line in lines) for number in (0, 1))
        parameters = re.search(r"param count:(\d+)", log)
        assert parameters is not None
        return {
            IMAGES_PER_SECOND: plan.counted_steps * self.global_batch_size / seconds,
            WAIT: 100 * waited / seconds,
            MEMORY: peak_gib,
            PARAMETERS: int(parameters[1]),
        }

    def _launch(self, launcher: str, arguments: Sequence[str]) -> tuple[str, float]:
        """Run on all ranks; what was said, and the most memory of any process, GiB. Raises SystemExit if it fails."""
        if self.num_ranks == 1:
            command = [sys.executable, *arguments]
        elif launcher == "deepspeed":
            ranks = f"--num_accelerators={self.num_ranks}"
            command = [str(BIN / "deepspeed"), ranks, f"--master_port={free_port()}", *arguments]
        else:
            ranks = f"--nproc-per-node={self.num_ranks}"
            command = [str(BIN / "torchrun"), ranks, f"--master-port={free_port()}", *arguments]
        environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.num_ranks)),
            **({} if self.on_gpu else {"DS_ACCELERATOR": "cpu"}),
        }
        # timm's checkout comes with a timm of its own, which its folder, as the script's, has Python find first.
        with started(command, environment) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{output[-4000:]}")
        return output, usage.ru_maxrss / 2**20


_TIMM_STEP = re.compile(r"Train: 0 \[.*Time: ([\d.]+)s, .*Data: ([\d.]+) ")


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed if this one is interrupted."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()


def deepspeed_config(stage: int | None) -> str:
    """The config of a ZeRO stage."""
    return str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json")


def version_of(timm_folder: Path) -> str:
    """Of a checkout of timm."""
    found = re.search(r"'(.+)'", (timm_folder / "timm" / "version.py").read_text())
    return found[1] if found else importlib.metadata.version("timm")


def run_rounds(case: Case, rounds: int, results: dict[str, dict[str, list[float]]]) -> None:
    """Add every round's figures of a case; the contenders take turns, and another one begins each round."""
    for number in range(rounds):
        first, names = number % len(case.contenders), []
        for contender, stage in case.contenders[first:] + case.contenders[:first]:
            name = contender if stage is None else f"{contender} ZeRO-{stage}"
            figures = case.run(contender, stage)
            names.append(name)
            for figure, value in figures.items():
                results.setdefault(name, {}).setdefault(f"{figure}, {case.name}", []).append(value)
            shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
            print(f"{case.name}, round {number + 1} of {rounds}: {name}: {shown}", flush=True)
        parameters = {name: results[name][f"{PARAMETERS}, {case.name}"][-1] for name in names}
        if len(set(parameters.values())) > 1:
            raise SystemExit(f"the contenders train other students; their parameters: {parameters}")


def ratios(results: Mapping[str, Mapping[str, list[float]]]) -> dict[str, float]:
    """Ours to each of the others: the median of the ratios of rates within a round.

    To the engine at the same ZeRO stage; to the others at each, of which the best counts.
    """
    found = {}
    for name, figures in results.items():
        kind, _, stage = name.partition(" ")
        for other, values in results.items():
            if kind != "xmodal" or other not in (f"engine {stage}", "torch", "timm"):
                continue
            for figure in figures.keys() & values.keys():
                if figure.startswith(IMAGES_PER_SECOND):
                    of_rounds = [a / b for a, b in zip(figures[figure], values[figure], strict=True)]
                    found[f"{name} / {other}: {figure}"] = round(statistics.median(of_rounds), 3)
    return found


if __name__ == "__main__":
    main()
