"""Training loaders, images/s: ours against webdataset and mosaicml-streaming, and the limit of decoding with Pillow.

    python benchmarks/loader.py --quick --json loader.json

All read the same JPEGs from local disk (by then in the page cache) with as many workers, take the same random crops
of 224 pixels and mirror half of them, and hand normalised float32 batches to the main process. The limit, `decode`,
is as many processes that decode the pictures whole, from memory, and do nothing else. Only a loader that decodes large
pictures at a part of their size can be faster than that.

The peers run in a virtual environment of their own, which is made the first time (some minutes and gigabytes, from
the package index that pip is set to). Without them (`--contenders xmodal decode`) none is made. Pictures of 600 by
450 pixels are of about 60 kB, those of 1600 by 1200 of about 400 kB; they take 3 GB in `--folder` while this runs.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import loader_pictures
import report_file
from loader_process import Plan
from peers_environment import FOLDER, environment_of_peers, versions_of_peers

HERE = Path(__file__).resolve().parent
OURS, PEERS = ("xmodal", "decode"), ("webdataset", "mosaicml-streaming")
SAME_IN_BOTH = ("torch", "torchvision", "pillow")
PINS = {"webdataset": "1.0.2", "mosaicml-streaming": "0.13.0"}
SIZES = {"600x450": (600, 450), "1600x1200": (1600, 1200)}
COUNTED_BATCHES = {"600x450": (48, 96), "1600x1200": (16, 32)}
"""Of a round, with `--quick` and without."""
PREFETCH_FACTOR = 4
"""That of `TrainStream`; the peers get the same."""
BATCHES_PER_SHARD = 4
RATE, CPU = "images_per_second", "cpu_ms_per_image"
"""The latter, over all processes, says more where others use the cores too."""


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    arguments = parse_arguments()
    names = arguments.contenders
    peers = None
    if set(names) & set(PEERS):
        same = {name: importlib.metadata.version(name) for name in SAME_IN_BOTH}
        peers = environment_of_peers(Path(arguments.peers_environment), PINS | same)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    works = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="loader-", dir=arguments.folder) as folder:
            plan = make_plan(arguments, size, folder)
            works.append(f"{size}: {prepare(plan, size, names, peers)}")
            check_same_work(plan, names, peers)
            run_rounds(plan, size, results, arguments.rounds or (5 if arguments.quick else 9), peers)
    work = (
        f"JPEGs to crops of 224 pixels in float32 batches of {arguments.batch_size}, {arguments.workers} workers, "
        f"one thread each, from the page cache; {'; '.join(works)}"
    )
    packages = ("numpy", *SAME_IN_BOTH, "xmodal")
    document = report_file.report("loader", work, packages, results, ratios(results))
    if peers:
        versions = versions_of_peers(peers, ("numpy", *SAME_IN_BOTH, *PINS))
        document["versions"] |= {f"peers: {name}": version for name, version in versions.items()}
    report_file.write(document, arguments.json)


def parse_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 9, of half as many pictures")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", default=".", help="where to write the pictures: on the disk to read them from")
    parser.add_argument("--contenders", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, help="instead of 9 (or 5)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each contender")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--peers-environment", default=str(FOLDER / "loader"), help="folder of the peers' environment")
    return parser.parse_args()


def make_plan(arguments: argparse.Namespace, size: str, folder: str) -> Plan:
    """What every contender does with the pictures of a size."""
    return Plan(
        folder=folder,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        prefetch_factor=PREFETCH_FACTOR,
        # Until these have come, the first of the batches that were ordered before anybody waited are still there.
        warm_up_batches=PREFETCH_FACTOR * arguments.workers,
        counted_batches=COUNTED_BATCHES[size][0 if arguments.quick else 1],
    )


def prepare(plan: Plan, size: str, names: list[str], peers: Path | None) -> str:
    """Write the pictures for all contenders; returns what they are."""
    # More than are taken, so that no worker is done before the last counted batch; as many shards for each worker.
    least = plan.counted_batches + 2 * plan.warm_up_batches
    num_shards = plan.num_workers * -(-least // (BATCHES_PER_SHARD * plan.num_workers))
    samples_per_shard = BATCHES_PER_SHARD * plan.batch_size
    loader_pictures.make_dataset(Path(plan.folder), *SIZES[size], num_shards, samples_per_shard)
    for name in names:
        if name in PEERS:
            run_contender(name, "prepare", plan, peers)
    num_bytes = sum(Path(tar).stat().st_size for tar in plan.tars()) / (num_shards * samples_per_shard)
    counted = plan.counted_batches * plan.batch_size
    return (
        f"{num_shards} shards of {samples_per_shard}, {num_bytes / 1000:.0f} kB a sample, "
        f"{loader_pictures.NUM_DISTINCT} pictures that differ, {counted} images a round and contender"
    )


def run_contender(name: str, task: str, plan: Plan, peers: Path | None) -> str:
    """A contender's task in a fresh process; returns the last line that it prints. Raises SystemExit if it fails."""
    python, script = (peers, "loader_peers.py") if name in PEERS else (sys.executable, "loader_ours.py")
    command = [str(python), str(HERE / script), name, task, json.dumps(dataclasses.asdict(plan))]
    # The workers share the cores; a main process with more threads would take its part of them by force.
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{name}, {task}:\n{done.stderr[-4000:]}")
    return done.stdout.rstrip().rpartition("\n")[2]


def check_same_work(plan: Plan, names: list[str], peers: Path | None) -> None:
    """All read the same pictures, and the loaders' batches are alike. Raises SystemExit if not."""
    found = {name: json.loads(run_contender(name, "check", plan, peers)) for name in names}
    if len({one["pictures"] for one in found.values()}) > 1:
        raise SystemExit(f"the contenders read other pictures: {found}")
    loaders = {name: one for name, one in found.items() if name != "decode"}
    expected = f"torch.float32 [{plan.batch_size}, 3, 224, 224]"
    if any(one["batches"] != expected for one in loaders.values()):
        raise SystemExit(f"the contenders' batches are not {expected}: {loaders}")
    # Other random crops of the same pictures: not equal, but alike. Without a step, they would be off by 0.4 or more.
    for figure in ("mean", "std"):
        values = [one[figure] for one in loaders.values()]
        if values and max(values) - min(values) > 0.2:
            raise SystemExit(f"the contenders' pixels differ: {loaders}")


def run_rounds(
    plan: Plan, size: str, results: dict[str, dict[str, list[float]]], rounds: int, peers: Path | None
) -> None:
    """Add every round's figures of a size; the contenders take turns, and another one begins each round."""
    names = list(results)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for figure, value in measure(name, dataclasses.replace(plan, seed=number), peers).items():
                results[name].setdefault(f"{figure}_{size}", []).append(value)
        latest = ", ".join(f"{name} {results[name][f'{RATE}_{size}'][-1]:.0f}" for name in names)
        print(f"{size}, round {number + 1} of {rounds}, images/s: {latest}", flush=True)


def measure(name: str, plan: Plan, peers: Path | None) -> dict[str, float]:
    """The figures of a contender's round. Raises SystemExit if it did not deliver all images."""
    took: dict[str, Any] = json.loads(run_contender(name, "measure", plan, peers))
    expected = plan.counted_batches * plan.batch_size, plan.warm_up_batches * plan.batch_size
    if (took["images"], took["warm_up_images"]) != expected:
        raise SystemExit(f"{name} delivered {took} instead of {expected} images")
    return {RATE: took["images"] / took["seconds"], CPU: 1000 * took["cpu_seconds"] / took["images"]}


def ratios(results: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Ours to each of the others: the median of the ratios of rates within a round."""
    if "xmodal" not in results:
        return {}
    return {
        f"xmodal / {name}: {figure}": round(
            statistics.median(a / b for a, b in zip(results["xmodal"][figure], values, strict=True)), 3
        )
        for name, figures in results.items()
        if name != "xmodal"
        for figure, values in figures.items()
        if figure.startswith(RATE)
    }


if __name__ == "__main__":
    main()
