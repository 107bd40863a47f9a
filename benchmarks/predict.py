"""Predictions, images/s: ours against timm's validate.py and an image classification pipeline of transformers.

    python benchmarks/predict.py --quick --timm ~/pytorch-image-models --json predict.json

All take the same folder of JPEGs of mixed sizes (from the page cache), the same student (a timm folder, random
weights), float32, as many threads, and make a probability of each class for each picture. The seconds are those from
the first picture to the last answer, without the loading of libraries and of the student; each contender has predicted
something before.

- `xmodal`: what `xmodal predict` does; its time includes the table on the disk.
- `pipeline`: `load_student(name)(files)`, our Python interface.
- `timm, n workers`: its own validate.py. PyPI's package lacks that script: give a checkout of
  https://github.com/huggingface/pytorch-image-models, which is then run with its own timm.
- `transformers, n workers`: `pipeline("image-classification", model=folder)(files, batch_size=…, num_workers=n)`.

The peers get `--batch-size`, ours the one that `xmodal predict` finds. The ratio that counts is that to the faster one.
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import loader_pictures
import numpy as np
import report_file
import torch
from step import version_of

from xmodal.students import StudentConfig, classifiers, create_student, export_student, input_spec

HERE = Path(__file__).resolve().parent
SIZES = ((600, 450), (1024, 768), (600, 450), (1600, 1200))
"""Of the pictures, in turn."""
NUM_DISTINCT = 32
RATE = "images_per_second"
OURS = ("xmodal", "pipeline")


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    arguments = parse_arguments()
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="predict-", dir=arguments.folder) as folder:
        make_pictures(Path(folder) / "pictures", arguments.pictures)
        for model in arguments.models:
            run_rounds(Case(arguments, model, Path(folder)), arguments.rounds, results)
    work = (
        f"{arguments.pictures} JPEGs of {', '.join(f'{width}x{height}' for width, height in SIZES)} in turn, "
        f"{', '.join(arguments.models)} at their own size, float32, {arguments.threads} threads, the peers in batches "
        f"of {arguments.batch_size}, {arguments.rounds} rounds"
    )
    if arguments.timm:
        work += f"; timm's validate.py of {version_of(arguments.timm)}"
    packages = ("torch", "torchvision", "timm", "transformers", "pillow", "xmodal")
    report_file.write(report_file.report("predict", work, packages, results, ratios(results)), arguments.json)


def parse_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="128 pictures instead of 512")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", help="where to write pictures and students; by default /tmp")
    parser.add_argument("--timm", type=Path, help="folder of a checkout of timm, with its validate.py")
    parser.add_argument("--contenders", nargs="+", choices=(*OURS, "timm", "transformers"), help="by default all")
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224", "tf_efficientnet_lite0"])
    parser.add_argument("--pictures", type=int, help="in a round; by default 512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="of the peers")
    parser.add_argument("--workers", type=int, nargs="+", help="reading processes of the peers; by default 0, 1, 2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    arguments = parser.parse_args()
    arguments.pictures = arguments.pictures or (128 if arguments.quick else 512)
    arguments.workers = arguments.workers or [0, 1, 2]
    arguments.contenders = arguments.contenders or [*OURS, *(["timm"] if arguments.timm else []), "transformers"]
    if "timm" in arguments.contenders and not (arguments.timm and (arguments.timm / "validate.py").is_file()):
        parser.error("--contenders timm needs --timm, the folder of a checkout with its validate.py")
    return arguments


def make_pictures(folder: Path, count: int) -> None:
    """Write the pictures, in a folder for one class, as timm wants it; some of them under several names."""
    generator = np.random.default_rng(0)
    (folder / "0").mkdir(parents=True)
    made: list[bytes] = []
    for number in range(count):
        if number < NUM_DISTINCT:
            photo = loader_pictures.photo(*SIZES[number % len(SIZES)], generator)
            made.append(loader_pictures.jpeg(photo, int(generator.integers(85, 91))))
        (folder / "0" / f"{number:06d}.jpg").write_bytes(made[number % NUM_DISTINCT])


class Case:
    """A student, and who predicts with it."""

    def __init__(self, arguments: argparse.Namespace, model: str, folder: Path) -> None:
        self.name = model
        self.num_pictures = arguments.pictures
        self.timm_folder: Path | None = arguments.timm
        self.threads = arguments.threads
        self.plan: dict[str, Any] = {
            "student": str(folder / model.replace("/", "-").replace(":", "-")),
            "pictures": str(folder / "pictures"),
            "batch_size": arguments.batch_size,
        }
        make_student(model, self.plan["student"])
        self.plan["for_transformers"] = for_transformers(self.plan["student"])
        self.contenders: list[tuple[str, int | None]] = []
        for contender in arguments.contenders:
            # timm's loader has no place for pictures that are read by nobody but the main process.
            of_peer = [number for number in arguments.workers if number or contender != "timm"]
            self.contenders += [(contender, number) for number in ([None] if contender in OURS else of_peer)]

    def run(self, contender: str, workers: int | None) -> dict[str, Any]:
        """Seconds and what was said. Raises SystemExit if it fails."""
        if contender == "timm":
            return self._run_timm(workers or 0)
        plan = json.dumps(self.plan | {"workers": workers})
        output = self._launch([str(HERE / "predict_process.py"), contender, plan])
        done = json.loads(output.rstrip().rpartition("\n")[2])
        if done["threads"] != self.threads or len(done["scores"]) != self.num_pictures:
            raise SystemExit(f"{contender} had {done['threads']} threads and predicted {len(done['scores'])} pictures")
        return done

    def _run_timm(self, workers: int) -> dict[str, Any]:
        assert self.timm_folder is not None
        batch_size = self.plan["batch_size"]
        arguments = [
            str(self.timm_folder.resolve() / "validate.py"), self.plan["pictures"], "--split", "",
            "--model", f"local-dir:{self.plan['student']}", "--pretrained", "--num-classes", "3",
            "--batch-size", str(batch_size), "--workers", str(workers), "--log-freq", "1",
            "--device", "cuda" if torch.cuda.is_available() else "cpu",
        ]  # fmt: skip
        lines = _TIMM_BATCH.findall(self._launch(arguments))
        num_batches = math.ceil(self.num_pictures / int(batch_size))
        if len(lines) != num_batches:
            raise SystemExit(f"timm's validate.py has done {len(lines)} batches instead of {num_batches}")
        return {"seconds": float(lines[-1][0]) * num_batches, "loss": float(lines[-1][1])}

    def _launch(self, arguments: list[str]) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}:\n{done.stdout[-4000:]}")
        return done.stdout

    def check_same_work(self, done: dict[str, dict[str, Any]]) -> None:
        """All have said about the same of the pictures. Raises SystemExit if not.

        They scale pictures in other ways, so not exactly. validate.py tells the mean loss alone, of class 0.
        """
        (expected, *_) = (one["scores"] for one in done.values() if "scores" in one)
        loss = -statistics.mean(math.log(scores[0]) for scores in expected.values())
        for name, one in done.items():
            if "loss" in one:
                difference = abs(one["loss"] - loss)
            else:
                pairs = [(one["scores"][picture], scores) for picture, scores in expected.items()]
                difference = statistics.mean(abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True))
            if difference > _MOST_DIFFERENCE:
                raise SystemExit(f"{self.name}: {name} says something else: it differs by {difference:.4f}")


_MOST_DIFFERENCE = 0.02
_TIMM_BATCH = re.compile(r"Test: \[.*Time: [\d.]+s \(([\d.]+)s,.*Loss: +[\d.]+ \( *([\d.]+)\)")


def make_student(model: str, folder: str) -> None:
    """A student with random weights, whose answers differ from picture to picture and from class to class."""
    torch.manual_seed(0)
    student = create_student(StudentConfig(model=model, pretrained=model.startswith("local-dir:")))
    (head,) = classifiers(student)
    torch.nn.init.normal_(head.weight, std=head.in_features**-0.5)  # type: ignore[arg-type, operator]
    spec = input_spec(student)
    export_student(student, folder, crop_share=spec.crop_share, squash=spec.squash, provenance={})


def for_transformers(student: str) -> str:
    """A copy that transformers can load: it gives timm the number of classes itself, and may not be told it twice."""
    folder = f"{student}-for-transformers"
    shutil.copytree(student, folder)
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    config.get("model_args", {}).pop("num_classes", None)
    file.write_text(json.dumps(config))
    return folder


def run_rounds(case: Case, rounds: int, results: dict[str, dict[str, list[float]]]) -> None:
    """Add every round's figures of a case; the contenders take turns, and another one begins each round."""
    for number in range(rounds):
        first = number % len(case.contenders)
        done = {}
        for contender, workers in case.contenders[first:] + case.contenders[:first]:
            name = contender if workers is None else f"{contender}, {workers} workers"
            done[name] = case.run(contender, workers)
            rate = case.num_pictures / done[name]["seconds"]
            results.setdefault(name, {}).setdefault(f"{RATE}, {case.name}", []).append(rate)
            print(f"{case.name}, round {number + 1} of {rounds}: {name}: {rate:.1f} images/s", flush=True)
        case.check_same_work(done)


def ratios(results: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Ours to each of the others, and to the fastest of a round: the median of the ratios of rates within a round."""
    found = {}
    others = [name for name in results if name not in OURS]
    for name in results.keys() & set(OURS):
        for figure, rates in results[name].items():
            for other in others:
                pairs = zip(rates, results[other][figure], strict=True)
                found[f"{name} / {other}: {figure}"] = round(statistics.median(a / b for a, b in pairs), 3)
            if others:
                fastest = [
                    max(of_round) for of_round in zip(*(results[other][figure] for other in others), strict=True)
                ]
                pairs = zip(rates, fastest, strict=True)
                found[f"{name} / the fastest other: {figure}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
