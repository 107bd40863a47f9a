"""The whole of curation over a million and ten million samples: time, peak memory, and how both grow.

    python benchmarks/curate.py --json curate.json

The datasets are index files of the real form, of invented posts; their tars are as long as the indexes say and hold
nothing, for curation reads none. Of the pictures 15 % are exact and 7 % near copies of others. Every step is asked for:
duplicates, a benchmark, forgotten posts, thresholds, balance, splits, and the report of conflicts. That the funnel has
the counts that were planted is checked in every round. Each round is a fresh process. The only contender is ours: the
notebooks of the method's authors hold what they curate in memory, a table after another.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import curate_datasets
import report_file

SIZES, QUICK_SIZES = (1_000_000, 10_000_000), (10_000, 100_000)


def main() -> None:
    """Make the datasets, run all rounds, and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES} samples instead of {SIZES}")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of samples, ascending")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the datasets go (and stay); about 300 bytes a sample")
    parser.add_argument("--one-round", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_round:
        print(json.dumps(one_round(Path(arguments.one_round))))
        return
    sizes = arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES)
    with tempfile.TemporaryDirectory(prefix="curate-") as temporary:
        folders = {size: Path(arguments.folder or temporary) / str(size) for size in sizes}
        for size, folder in folders.items():
            if not (folder / "planted.json").exists():
                curate_datasets.make(folder, size)
        results: dict[str, dict[str, list[float]]] = {}
        for _ in range(arguments.rounds):
            for size, folder in folders.items():
                figures = in_fresh_process(folder)
                print(
                    f"{size:>11,}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True
                )
                for name, value in figures.items():
                    results.setdefault(f"xmodal, {size:,} samples", {}).setdefault(name, []).append(value)
        view_bytes = {
            size: sum(file.stat().st_size for file in (folder / "view").iterdir()) for size, folder in folders.items()
        }
    first, last = (list(results.values())[place] for place in (0, -1))
    growth = {
        f"{sizes[-1]:,} / {sizes[0]:,} samples: {name}": round(
            statistics.median(a / b for a, b in zip(last[name], first[name], strict=True)), 3
        )
        for name in ("seconds", "peak_mib")
    }
    work = (
        f"{' and '.join(f'{size:,}' for size in sizes)} samples in shards of {curate_datasets.SAMPLES_PER_SHARD:,}, "
        f"every step, {curate_datasets.NUM_BENCHMARK_PICTURES} benchmark pictures; views of "
        f"{' and '.join(f'{size / 2**20:,.0f} MiB' for size in view_bytes.values())}"
    )
    document = report_file.report("curate", work, ("numba", "numpy", "pyarrow", "xmodal"), results, growth)
    report_file.write(document, arguments.json)


def in_fresh_process(folder: Path) -> dict[str, float]:
    """The figures of a round in a process of its own, whose memory is read too."""
    command = [sys.executable, __file__, "--one-round", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_round(folder: Path) -> dict[str, float]:
    """Curate the dataset in `folder`. Raises SystemExit if the funnel has other counts than were planted."""
    from xmodal.curation.curate import curate

    config = curate_datasets.recipe(folder)
    start = time.perf_counter()
    summary = curate(config)
    seconds = time.perf_counter() - start
    funnel = {step.step: step.samples for step in summary.funnel}
    planted = json.loads((folder / "planted.json").read_text())
    if {name: funnel.get(name) for name in planted} != planted:
        sys.exit(f"planted: {planted}; found: {funnel}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "samples_in_view": float(sum(summary.splits.values())),
    }


if __name__ == "__main__":
    main()
