"""Time and memory of a training step of a real ViT-L/16 (304 M parameters) on 2 CPU ranks, ZeRO-2 against ZeRO-3.

    python benchmarks/vit_l16_step.py --quick --json vit_l16.json

Runs `deepspeed --num_accelerators 2 launch/train.py` in bf16 with random weights on random 224-pixel pictures. Needs
about 8 GB of memory a rank. Both contenders take the same samples; their losses and students are compared after the
first round, before any figure is believed.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import report_file
from PIL import Image

from shards.dataset import finish
from shards.index import read_index
from shards.storage import LocalStorage
from shards.view import SHARD_SCHEMA, shard_entry, write_view
from shards.writer import Sample, write_shard

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = {"zero2": "configs/deepspeed/zero2.json", "zero3": "configs/deepspeed/zero3.json"}
NUM_SAMPLES = 8


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of one step instead of five of two")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rounds, steps = (1, 1) if arguments.quick else (5, 2)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="vit-l16-") as folder:
        view = make_view(Path(folder))
        for number in range(rounds):
            for name, deepspeed_config in CONTENDERS.items():
                for figure, value in run(view, Path(folder) / f"{name}-{number}", deepspeed_config, steps).items():
                    results[name].setdefault(figure, []).append(value)
                print(f"round {number + 1} of {rounds}: {name}: {last(results[name])}", flush=True)
            check_same_work(results)
    report_file.write(describe(results, steps), arguments.json)


def make_view(folder: Path) -> Path:
    """A dataset of random pictures and a view of all of it."""
    storage = LocalStorage(folder / "dataset", create=True)
    generator = np.random.default_rng(0)
    samples = []
    for number in range(NUM_SAMPLES):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(file, "JPEG")
        label = generator.dirichlet([1, 1, 1]).round(6).tolist()
        fields = {"soft_label": label}
        samples.append(Sample(key=f"{number}-0", image=file.getvalue(), image_extension="jpg", fields=fields))
    write_shard(storage, "000000", samples)
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    index = read_index(storage, "000000.tar")
    columns = {
        "dataset": pa.array([0] * NUM_SAMPLES, pa.int32()),
        "shard": pa.array(["000000.tar"] * NUM_SAMPLES),
        **{name: index[name] for name in ("key", "image_ext", "image_offset", "image_length", "image_crc32")},
        "split": pa.array(["train"] * NUM_SAMPLES),
        "target": index["soft_label"],
    }
    write_view(
        str(folder / "view"),
        pa.table(columns),
        pa.Table.from_pylist([shard_entry(0, "000000.tar", index)], schema=SHARD_SCHEMA),
        datasets=[str(folder / "dataset")],
        description={"counts": {"splits": {"train": NUM_SAMPLES, "val": 0, "test": 0}}},
    )
    return folder / "view"


def run(view: Path, output: Path, deepspeed_config: str, steps: int) -> dict[str, float]:
    """One launch; the figures are those of its last step. Raises CalledProcessError with the launcher's output."""
    bin_folder = Path(sys.executable).parent
    command = [
        str(bin_folder / "deepspeed"), "--num_accelerators=2", "launch/train.py",
        "--config=configs/train/vit_l16.yaml",
        f"--view={view}", f"--output={output}", f"--deepspeed={deepspeed_config}",
        "--student.pretrained=false", "--stream.num_lanes=2", "--stream.num_workers=0", "--global_batch_size=2",
        "--micro_batch_size=1", f"--max_steps={steps}", "--log_every_steps=1", "--checkpoint_every_epochs=0",
    ]  # fmt: skip
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        done.check_returncode()
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    student = output / "student" / "model.safetensors"
    figures = {
        "seconds_per_step": 2 / line["images_per_second"],
        "memory_gib_of_first_rank": line["memory_gib"],
        "loss": line["loss"],
        "student_bytes": float(student.stat().st_size),
    }
    student.unlink()
    return figures


def check_same_work(results: dict[str, dict[str, list[float]]]) -> None:
    """Both contenders saw the same samples and trained the same model. Raises SystemExit if not."""
    first, second = results.values()
    if first["student_bytes"] != second["student_bytes"]:
        sys.exit(f"the students differ in size: {first['student_bytes']} and {second['student_bytes']} bytes")
    if any(abs(one - other) > 0.05 for one, other in zip(first["loss"], second["loss"], strict=True)):
        sys.exit(f"the losses differ: {first['loss']} and {second['loss']}")


def describe(results: dict[str, dict[str, list[float]]], steps: int) -> dict[str, Any]:
    """The report of all rounds."""
    ratios = {
        f"zero3 / zero2: {figure}": round(
            statistics.median(
                third / second for second, third in zip(results["zero2"][figure], results["zero3"][figure], strict=True)
            ),
            3,
        )
        for figure in ("seconds_per_step", "memory_gib_of_first_rank")
    }
    work = f"step {steps} of a ViT-L/16 at 224 pixels, bf16, global batch 2 on 2 ranks, gradient checkpointing"
    return report_file.report("vit_l16_step", work, ("torch", "deepspeed", "timm", "xmodal"), results, ratios)


def last(figures: dict[str, list[float]]) -> str:
    """The newest value of each figure."""
    return ", ".join(f"{name} {values[-1]:.4g}" for name, values in figures.items())


if __name__ == "__main__":
    main()
