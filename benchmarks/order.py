"""Set-up, memory and seek of one rank's order of an epoch: 1,000,000 shards, 10^9 samples, 4,096 ranks.

    python benchmarks/order.py --quick --json order.json

Each round is a fresh process that plans an epoch as the stream does and asks for the rows of one step at 1 %, 50 % and
99 % of it, of a rank drawn at random. That the steps hold other rows at each place, all of them in range, is checked
first. The only contender is ours: others read their way to where a run broke off.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import report_file

from shards.order import EpochOrder, lanes_of_rank, num_batches_of_epoch

NUM_SHARDS, NUM_SAMPLES, NUM_RANKS = 1_000_000, 10**9, 4096
LANES_PER_RANK, SAMPLES_PER_LANE_AND_STEP = 1, 16
PLACES = {"1": 0.01, "50": 0.5, "99": 0.99}
"""Percent of the epoch → share of its steps."""
SEEKS = 20
"""Steps that are sought at each place, one after the other."""


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five rounds instead of eleven")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one-round", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_round is not None:
        print(json.dumps(one_round(arguments.one_round)))
        return
    results: dict[str, list[float]] = {}
    for number in range(5 if arguments.quick else 11):
        done = subprocess.run(
            [sys.executable, __file__, "--one-round", str(number)], stdout=subprocess.PIPE, text=True, check=True
        )
        figures = json.loads(done.stdout)
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
        for name, value in figures.items():
            results.setdefault(name, []).append(value)
    late, early = results["seek_ms_at_99_percent"], results["seek_ms_at_1_percent"]
    ratios = {"seek at 99 % / at 1 %": round(statistics.median(a / b for a, b in zip(late, early, strict=True)), 3)}
    work = (
        f"one epoch of {NUM_SHARDS:,} shards of 1 to 1,999 samples (about {NUM_SAMPLES:,}) in {NUM_RANKS:,} ranks "
        f"of {LANES_PER_RANK} lane each, {SAMPLES_PER_LANE_AND_STEP} samples a lane and step"
    )
    document = report_file.report("order", work, ("numpy", "xmodal"), {"xmodal": results}, ratios)
    report_file.write(document, arguments.json)


def one_round(seed: int) -> dict[str, float]:
    """The figures of one rank in this process, which must be fresh: its memory is read too."""
    sizes = shard_sizes(seed)
    rank = int(np.random.default_rng(seed).integers(NUM_RANKS))
    num_lanes = NUM_RANKS * LANES_PER_RANK
    num_steps = num_batches_of_epoch(int(sizes.sum()), num_lanes, num_lanes * SAMPLES_PER_LANE_AND_STEP)
    before = peak_mib()
    start = time.perf_counter()
    order = EpochOrder(sizes, seed=seed, epoch=3, num_lanes=num_lanes, shards_per_block=4)
    lanes = lanes_of_rank(rank, NUM_RANKS, num_lanes)
    figures = {"setup_seconds": time.perf_counter() - start}
    check(order, lanes, num_steps)
    for percent, share in PLACES.items():
        first = min(int(num_steps * share), num_steps - 1)
        figures[f"seek_ms_at_{percent}_percent"] = statistics.median(
            seek_ms(order, lanes, step, num_steps) for step in range(first, max(0, first - SEEKS), -1)
        )
    figures["memory_mib"] = peak_mib() - before
    return figures


def shard_sizes(seed: int) -> np.ndarray:
    """NUM_SHARDS uneven sizes, of about NUM_SAMPLES in all."""
    return np.random.default_rng(seed).integers(1, 2 * NUM_SAMPLES // NUM_SHARDS, NUM_SHARDS)


def seek_ms(order: EpochOrder, lanes: range, step: int, num_steps: int) -> float:
    """Milliseconds to the rows of a step of the rank, as when a run resumes there: the step's block must be made."""
    # Of each lane the block that was asked for last is kept: let that be another one, from the middle of the epoch's
    # other half.
    elsewhere = num_steps // 4 if step > num_steps // 2 else 3 * num_steps // 4
    for lane in lanes:
        ends = {order.blocks_ahead(lane, one * SAMPLES_PER_LANE_AND_STEP, 1)[1] for one in (step, elsewhere)}
        if len(ends) < 2:
            sys.exit(f"steps {step} and {elsewhere} lie in one block, so that seeking would cost nothing")
    rows_of_step(order, lanes, elsewhere)
    start = time.perf_counter()
    rows_of_step(order, lanes, step)
    return 1000 * (time.perf_counter() - start)


def rows_of_step(order: EpochOrder, lanes: range, step: int) -> np.ndarray:
    """What the stream asks for at a step."""
    positions = np.arange(step * SAMPLES_PER_LANE_AND_STEP, (step + 1) * SAMPLES_PER_LANE_AND_STEP)
    return np.concatenate([order.rows(lane, positions) for lane in lanes])


def check(order: EpochOrder, lanes: range, num_steps: int) -> None:
    """The steps that are timed are real ones. Raises SystemExit if not."""
    rows = [rows_of_step(order, lanes, int((num_steps - 1) * share)) for share in PLACES.values()]
    together = np.concatenate(rows)
    if len(np.unique(together)) < len(together) or together.min() < 0 or together.max() >= order.shard_sizes.sum():
        sys.exit("the steps share rows, or have some that are out of range")


def peak_mib() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
