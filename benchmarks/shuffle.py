"""How well an epoch is shuffled: ours against a full permutation and against a shuffled list of shards with a buffer.

    python benchmarks/shuffle.py --quick --json shuffle.json --plot .

Nothing is read: an order is all that is compared. Each round takes two epochs of another seed. The full permutation is
the ideal, and needs all samples at hand. `shard shuffle + buffer` permutes the shards, deals them to 8 workers, and
draws from each worker's buffer at random; a global batch takes as many samples of each worker. It is a simulation of
that way of loading, not of any one library; a batch that is made by one worker alone is mixed less.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import report_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shards.order import EpochOrder, num_batches_of_epoch

NUM_SHARDS, SAMPLES_PER_SHARD, BATCH_SIZE, NUM_WORKERS, NUM_CLASSES = 1000, 1000, 256, 8, 3
WINDOW = 64
"""So many batches in a row are looked at together, too: for the shards that are at hand, and whether deviations of a
class's share last.
"""

Order = Callable[[np.ndarray, int, int], np.ndarray]
"""(shard sizes, seed, epoch) → the rows of each global batch, int64 `(batches, BATCH_SIZE)`."""
Medians = dict[str, float]
"""Contender → a figure's median over the rounds."""


def lanes_order(sizes: np.ndarray, seed: int, epoch: int, *, num_lanes: int, shards_per_block: int) -> np.ndarray:
    """Ours, as the stream cuts it into batches."""
    order = EpochOrder(sizes, seed, epoch, num_lanes, shards_per_block)
    num_batches = num_batches_of_epoch(int(sizes.sum()), num_lanes, BATCH_SIZE)
    positions = np.arange(num_batches * BATCH_SIZE // num_lanes)
    return side_by_side([order.rows(lane, positions) for lane in range(num_lanes)])


def full_permutation(sizes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The ideal."""
    return side_by_side([np.random.default_rng([seed, epoch]).permutation(sizes.sum())])


def buffer_order(sizes: np.ndarray, seed: int, epoch: int, *, buffer_size: int) -> np.ndarray:
    """Shards in random order, dealt to the workers, each of which draws from a buffer that it keeps full."""
    generator = np.random.default_rng([seed, epoch])
    starts = np.cumsum(sizes) - sizes
    shards = generator.permutation(len(sizes))
    streams = [
        np.concatenate(
            [np.arange(starts[shard], starts[shard] + sizes[shard]) for shard in shards[worker::NUM_WORKERS]]
        )
        for worker in range(NUM_WORKERS)
    ]
    return side_by_side([through_buffer(rows, buffer_size, generator) for rows in streams])


def through_buffer(rows: np.ndarray, buffer_size: int, generator: np.random.Generator) -> np.ndarray:
    """What comes out of a full buffer whose drawn row is replaced by the next one that comes in."""
    refilled = generator.integers(0, buffer_size, len(rows) - buffer_size)
    slots = np.concatenate([np.arange(buffer_size), refilled])
    by_slot = np.argsort(slots, kind="stable")
    # A row leaves when the next one takes its slot. The last of each slot leave at the end, in random order.
    time = np.empty(len(rows), dtype=np.int64)
    time[by_slot[:-1]] = by_slot[1:]
    time[by_slot[np.diff(slots[by_slot], append=buffer_size) > 0]] = len(rows) + generator.permutation(buffer_size)
    return rows[np.argsort(time)]


def side_by_side(streams: list[np.ndarray]) -> np.ndarray:
    """Global batches that take the same number of rows of each stream, until the shortest one ends."""
    count = BATCH_SIZE // len(streams)
    num_batches = min(map(len, streams)) // count
    return np.concatenate([rows[: num_batches * count].reshape(num_batches, count) for rows in streams], axis=1)


def ours(num_lanes: int, shards_per_block: int) -> tuple[str, Order]:
    """A contender and its name."""
    name = f"xmodal, {num_lanes} lanes, {shards_per_block} shard{'s' * (shards_per_block > 1)} a block"
    return name, partial(lanes_order, num_lanes=num_lanes, shards_per_block=shards_per_block)


IDEAL, DEFAULT = "full permutation", ours(64, 4)[0]
BUFFERS = {f"shard shuffle + buffer of {size:,}": size for size in (10_000, 1000)}
CONTENDERS: dict[str, Order] = {
    IDEAL: full_permutation,
    **dict(ours(*setting) for setting in ((256, 4), (64, 16), (64, 4), (64, 1), (8, 4))),
    **{name: partial(buffer_order, buffer_size=size) for name, size in BUFFERS.items()},
}


def main() -> None:
    """Run all rounds and print (and write, and draw) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five rounds instead of eleven")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--rounds", type=int, help="instead of 11 (or 5)")
    parser.add_argument("--plot", help="folder for shuffle.svg")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.quick else 11)
    sizes = shard_sizes()
    results: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    for seed in range(rounds):
        for name, order in CONTENDERS.items():
            for figure, value in figures(sizes, *(order(sizes, seed, epoch) for epoch in range(2))).items():
                results[name].setdefault(figure, []).append(value)
        latest = ", ".join(f"{name}: {values['shards_per_batch'][-1]:.0f}" for name, values in results.items())
        print(f"round {seed + 1} of {rounds}, distinct shards a batch: {latest}", flush=True)
    ratios = {
        f"{DEFAULT} / {other}: {figure}": round(
            statistics.median(a / b for a, b in zip(results[DEFAULT][figure], results[other][figure], strict=True)), 3
        )
        for other in (IDEAL, *BUFFERS)
        for figure in ("neighbour_distance_ratio", "shards_per_batch", "class_share_std_ratio")
    }
    work = (
        f"{sizes.sum():,} samples in {NUM_SHARDS:,} shards of {sizes.min():,} to {sizes.max():,}, global batches of "
        f"{BATCH_SIZE}, {NUM_CLASSES} classes stored one after the other, 2 epochs of {rounds} seeds"
    )
    report_file.write(report_file.report("shuffle", work, ("numpy", "xmodal"), results, ratios), arguments.json)
    if arguments.plot:
        draw(results, sizes, Path(arguments.plot) / "shuffle.svg")


def shard_sizes() -> np.ndarray:
    """Uneven sizes, of SAMPLES_PER_SHARD in the mean."""
    return np.random.default_rng(0).integers(SAMPLES_PER_SHARD // 2, SAMPLES_PER_SHARD * 3 // 2, NUM_SHARDS)


def figures(sizes: np.ndarray, batches: np.ndarray, next_batches: np.ndarray) -> dict[str, float]:
    """How well an epoch is mixed, and `next_batches`, the epoch after it, differs from it."""
    num_rows = int(sizes.sum())
    step, next_step = steps(batches, num_rows), steps(next_batches, num_rows)
    distances = neighbour_distances(step, sizes)
    shards = np.repeat(np.arange(len(sizes)), sizes)[batches]
    shards_per_batch = distinct(shards)
    low, middle, high = np.quantile(distances, (0.1, 0.5, 0.9))
    return {
        "correlation_with_stored_order": correlation(np.arange(num_rows), step),
        "correlation_of_two_epochs": correlation(step, next_step),
        "neighbour_distance_ratio": float(distances.mean() / expected_distance(len(batches))),
        "neighbour_distance_steps_p10": float(low),
        "neighbour_distance_steps_p50": float(middle),
        "neighbour_distance_steps_p90": float(high),
        "neighbours_in_one_batch_percent": float(100 * (distances == 0).mean()),
        "shards_per_batch": float(shards_per_batch.mean()),
        "shards_per_batch_min": float(shards_per_batch.min()),
        f"shards_per_{WINDOW}_batches": float(distinct(windows(shards)).mean()),
        "class_share_std_ratio": class_share_std_ratio(batches, num_rows),
        f"class_share_std_ratio_{WINDOW}_batches": class_share_std_ratio(windows(batches), num_rows),
    }


def steps(batches: np.ndarray, num_rows: int) -> np.ndarray:
    """The step of each row; NaN where it is left out of the epoch. Raises SystemExit if a row comes twice."""
    step = np.full(num_rows, np.nan)
    step[batches] = np.arange(len(batches))[:, None]
    if np.count_nonzero(~np.isnan(step)) != batches.size:
        sys.exit("an epoch has a sample twice")
    return step


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The size of Pearson's, which is Spearman's too: both are places, evenly spread."""
    seen = ~np.isnan(one) & ~np.isnan(other)
    return abs(float(np.corrcoef(one[seen], other[seen])[0, 1]))


def neighbour_distances(step: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Steps between the two of each pair of rows that lie side by side in a shard."""
    distances = np.abs(np.diff(step))
    distances[np.cumsum(sizes)[:-1] - 1] = np.nan  # from a shard's last row to the next shard's first
    return distances[~np.isnan(distances)]


def expected_distance(num_batches: int) -> float:
    """The mean distance of two steps that are drawn at random."""
    return (num_batches - 1 / num_batches) / 3


def distinct(values: np.ndarray) -> np.ndarray:
    """How many distinct values each line has."""
    return 1 + (np.diff(np.sort(values, axis=1), axis=1) > 0).sum(axis=1)


def windows(batches: np.ndarray) -> np.ndarray:
    """What WINDOW batches in a row hold together, a line for each whole window."""
    num_windows = len(batches) // WINDOW
    return batches[: num_windows * WINDOW].reshape(num_windows, -1)


def class_share_std_ratio(batches: np.ndarray, num_rows: int) -> float:
    """Standard deviation of a class's share in a batch, over that of as many independent draws.

    The classes are equal parts of the stored order: what shards look like that were written class after class.
    """
    labels = batches * NUM_CLASSES // num_rows
    shares = np.stack([(labels == label).mean(axis=1) for label in range(NUM_CLASSES)])
    expected = 1 / NUM_CLASSES
    binomial = np.sqrt(expected * (1 - expected) / batches.shape[1])
    return float(np.sqrt(((shares - expected) ** 2).mean()) / binomial)


OURS, BUFFER, FULL = "#0072B2", "#D55E00", "#555555"
"""From the palette of Okabe and Ito, which colour-blind readers can tell apart; the markers differ too."""
DRAWN = (*reversed(BUFFERS), ours(64, 1)[0], DEFAULT, IDEAL)
"""Contenders that have a scatter, from the least to the best mixed."""
DRAWN_SHARDS, DRAWN_SHARE = 24, 12
"""A scatter shows one of DRAWN_SHARE samples of the first DRAWN_SHARDS shards."""


def draw(results: report_file.Results, sizes: np.ndarray, file: Path) -> None:
    """Write an SVG: the same bytes for the same figures and the same matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        matplotlib.rcParams.update({"svg.hashsalt": "shuffle", "font.size": 9, "axes.titlesize": 9})
        matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=(10, 6.6), facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05))
        scatters = above.subplots(1, len(DRAWN), sharey=True)
        for axes, name in zip(scatters, DRAWN, strict=True):
            draw_scatter(axes, name, sizes)
        scatters[0].set_ylabel("step of the epoch")
        scatters[len(DRAWN) // 2].set_xlabel("place in the stored order (thousands of samples)")
        title = f"(a) When the samples of the first {DRAWN_SHARDS} of {NUM_SHARDS:,} shards come"
        above.suptitle(title, x=0.012, ha="left", weight="bold", fontsize=10)
        batch_axes, distance_axes = below.subplots(1, 2, sharey=True)
        draw_shards_per_batch(batch_axes, results)
        draw_distances(distance_axes, results)
        figure.savefig(file, format="svg", dpi=220, metadata={"Date": None, "Creator": None})


def draw_scatter(axes: Axes, name: str, sizes: np.ndarray) -> None:
    """The steps of a contender's samples over their stored order: what is mixed well looks like noise."""
    num_rows = int(sizes[:DRAWN_SHARDS].sum())
    step = steps(CONTENDERS[name](sizes, 0, 0), int(sizes.sum()))
    rows = np.arange(0, num_rows, DRAWN_SHARE)
    colour, _ = look(name)
    # As pixels: so many vector points would make a file of megabytes.
    axes.scatter(rows / 1000, step[rows], s=1.6, color=colour, linewidths=0, rasterized=True)
    axes.set_title(label(name).replace("lanes, ", "lanes,\n").replace("+ ", "+\n"), color=colour)
    axes.set_xlim(0, num_rows / 1000)
    axes.set_ylim(0, len(step) // BATCH_SIZE)
    axes.set_yticks(range(0, len(step) // BATCH_SIZE, 1000))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def draw_shards_per_batch(axes: Axes, results: report_file.Results) -> None:
    """Mean and least number of distinct shards in a batch."""
    means, least = medians(results, "shards_per_batch"), medians(results, "shards_per_batch_min")
    draw_intervals(axes, least, means, means)
    for place, (name, value) in enumerate(least.items()):
        axes.plot(value, place, color=look(name)[0], marker="|", markersize=7)
    axes.set_xlim(0, BATCH_SIZE + 6)
    axes.set_xlabel("distinct shards\n(dot: mean of all batches; bar: the batch with the fewest)")
    axes.set_title(f"(b) Shards that feed a global batch of {BATCH_SIZE}", loc="left", weight="bold", fontsize=10)
    axes.set_yticks(range(len(results)), [label(name) for name in results])
    axes.set_ylim(len(results) - 0.5, -0.5)


def draw_distances(axes: Axes, results: report_file.Results) -> None:
    """The distribution of the distance of neighbours."""
    low, middle, high = (medians(results, f"neighbour_distance_steps_p{percent}") for percent in (10, 50, 90))
    draw_intervals(axes, low, middle, high)
    axes.set_xscale("log")
    axes.set_xlim(2, 5000)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("distance in the epoch (steps, log scale)\n(dot: median; line: 10 % to 90 % of the pairs)")
    axes.set_title("(c) Steps between neighbours of a shard", loc="left", weight="bold", fontsize=10)
    axes.tick_params(labelleft=False)


def draw_intervals(axes: Axes, low: Medians, dot: Medians, high: Medians) -> None:
    """A row for each contender, and a dashed line where the ideal is."""
    for place, name in enumerate(dot):
        colour, marker = look(name)
        axes.plot([low[name], high[name]], [place, place], color=colour, linewidth=1.5)
        axes.plot(dot[name], place, color=colour, marker=marker, markersize=6)
    axes.axvline(dot[IDEAL], color=FULL, linewidth=0.8, linestyle="--")
    axes.grid(axis="x", linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)


def medians(results: report_file.Results, figure: str) -> Medians:
    """A figure's median over the rounds."""
    return {name: statistics.median(values[figure]) for name, values in results.items()}


def look(name: str) -> tuple[str, str]:
    """A contender's colour and marker."""
    if name in BUFFERS:
        return BUFFER, "s"
    return (FULL, "D") if name == IDEAL else (OURS, "o")


def label(name: str) -> str:
    """A contender's name on the drawing."""
    return f"{name} (default)" if name == DEFAULT else name


if __name__ == "__main__":
    main()
