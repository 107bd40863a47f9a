"""Draw lanes.svg: how an epoch's shards become lanes, blocks, global batches and parts of ranks.

    python docs/images/draw_lanes.py

Everything is drawn as `shards.order` has it, for a small dataset.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from shards.order import EpochOrder, lanes_of_rank, num_batches_of_epoch

SHARD_SIZES = np.array([34, 22, 41, 27, 36, 18, 30, 45, 25, 38, 21, 33, 29, 40, 24, 20])
NUM_LANES, SHARDS_PER_BLOCK, SAMPLES_PER_LANE_AND_STEP = 4, 2, 8
SEED, EPOCH = 2531, 0
"""An epoch whose blocks have shards of unlike colours."""
SHOWN_BATCH = 8

NUM_SAMPLES = int(SHARD_SIZES.sum())
SHARD_OF_ROW = np.repeat(np.arange(len(SHARD_SIZES)), SHARD_SIZES)
ORDER = EpochOrder(SHARD_SIZES, SEED, EPOCH, NUM_LANES, SHARDS_PER_BLOCK)
BOUNDS = ORDER.bounds
LANE_LENGTH = ORDER.samples_per_lane

# Colours from dark to light in the order of the shards: without colours, too, one sees that they are permuted.
COLOURS = matplotlib.colormaps["viridis"](np.linspace(0.06, 0.97, len(SHARD_SIZES)))
INK, FAINT, FRAME, RANK_FILL = "#222222", "#888888", "#D55E00", "#F2F2F2"

# All lengths are in hundredths of a lane's width.
WIDTH, SHARD_HEIGHT, MIXED_HEIGHT, GAP = 100.0, 2.7, 3.4, 0.35
LANE_HEIGHT, LANE_STEP = SHARD_HEIGHT + GAP + MIXED_HEIGHT, 9.2
STORED, PERMUTED, LANES_TOP = 53.5, 44.5, 31.0
LANES_BOTTOM = LANES_TOP - (NUM_LANES - 1) * LANE_STEP - LANE_HEIGHT
RANKS_LEFT, RANK_WIDTH, RANK_STEP = 105.0, 8.4, 10.0


def main() -> None:
    """Draw into the folder of this script, or another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=Path(__file__).parent, type=Path, help="where to write lanes.svg")
    folder = parser.parse_args().folder
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        matplotlib.rcParams.update({"svg.hashsalt": "lanes", "font.size": 9, "text.color": INK})
        figure = Figure(figsize=(10, 5), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-15, 137)
        axes.set_ylim(-13, 63)
        draw_shards(axes)
        draw_lanes(axes)
        draw_batches(axes)
        draw_ranks(axes)
        figure.savefig(folder / "lanes.svg", format="svg", metadata={"Date": None, "Creator": None})


def permuted_shards() -> np.ndarray:
    """The shard of each sample of the epoch before its lanes are shuffled."""
    # A single lane of a single block has all shards, in the epoch's order.
    [[shards], _] = EpochOrder(SHARD_SIZES, SEED, EPOCH, 1, len(SHARD_SIZES)).blocks_ahead(0, 0, 1)
    return np.repeat(shards, SHARD_SIZES[shards])


def block_edges(lane: int) -> list[int]:
    """Where the blocks of a lane end."""
    edges = []
    while not edges or edges[-1] < LANE_LENGTH:
        edges.append(ORDER.blocks_ahead(lane, edges[-1] if edges else 0, 1)[1])
    return edges


def edges_of_runs(values: np.ndarray) -> list[int]:
    """Where runs of equal values begin, and where the last one ends."""
    return [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]


def draw_shards(axes: Axes) -> None:
    """All shards, as they are stored and as this epoch has them, and where the lanes are cut."""
    scale = WIDTH / NUM_SAMPLES
    heading(axes, 0, STORED + SHARD_HEIGHT, "1  An epoch permutes the shards …")
    say(axes, -1.5, STORED + SHARD_HEIGHT / 2, "stored", ha="right")
    draw_runs(axes, SHARD_OF_ROW, STORED, SHARD_HEIGHT, scale)
    heading(axes, 0, PERMUTED + SHARD_HEIGHT, "2  … and cuts them into lanes of equal length")
    say(axes, -1.5, PERMUTED + SHARD_HEIGHT / 2, "permuted", ha="right")
    draw_runs(axes, permuted_shards(), PERMUTED, SHARD_HEIGHT, scale)
    for lane, (start, stop) in enumerate(itertools.pairwise(BOUNDS * scale)):
        low, high = PERMUTED - 1.2, PERMUTED - 0.4
        axes.plot([start + 0.15] * 2 + [stop - 0.15] * 2, [high, low, low, high], color=INK, linewidth=0.8)
        say(axes, (start + stop) / 2, low - 1.5, f"lane {lane}")
    for start, stop in ((0, BOUNDS[0] * scale), (BOUNDS[-1] * scale, WIDTH)):
        style = {"facecolor": "white", "hatch": "/" * 8, "linewidth": 0}
        axes.add_patch(Rectangle((start, PERMUTED), stop - start, SHARD_HEIGHT, **style))
    left_out = NUM_SAMPLES - NUM_LANES * LANE_LENGTH
    text = f"{left_out} samples (fewer than lanes) at\nits ends are left out this time"
    say(axes, WIDTH + 1.5, PERMUTED + SHARD_HEIGHT / 2, text, ha="left", fontsize=8)


def draw_lanes(axes: Axes) -> None:
    """Each lane's shards, its blocks, and below them its samples in the order of the epoch."""
    scale = WIDTH / LANE_LENGTH
    heading(
        axes, 0, LANES_TOP + 0.9, f"3  A lane shuffles its samples within blocks of about {SHARDS_PER_BLOCK} shards"
    )
    say(axes, WIDTH, LANES_TOP + 2.6, "black bars: edges of blocks", ha="right", fontsize=8)
    for lane in range(NUM_LANES):
        top = LANES_TOP - lane * LANE_STEP
        say(axes, -1.5, top - LANE_HEIGHT / 2, f"lane {lane}", ha="right")
        shards = permuted_shards()[BOUNDS[lane] : BOUNDS[lane + 1]]
        draw_runs(axes, shards, top - SHARD_HEIGHT, SHARD_HEIGHT, scale)
        draw_mixed(axes, SHARD_OF_ROW[ORDER.rows(lane, np.arange(LANE_LENGTH))], top - LANE_HEIGHT, scale)
        for edge in block_edges(lane)[:-1]:
            axes.plot([edge * scale] * 2, [top + 0.5, top - LANE_HEIGHT - 0.5], color="white", linewidth=4)
            axes.plot([edge * scale] * 2, [top + 0.5, top - LANE_HEIGHT - 0.5], color=INK, linewidth=1.6)


def draw_runs(axes: Axes, shards: np.ndarray, bottom: float, height: float, scale: float) -> None:
    """A box with its number for each shard's samples."""
    for start, stop in itertools.pairwise(edges_of_runs(shards)):
        shard, left, width = int(shards[start]), start * scale, (stop - start) * scale
        box = Rectangle((left, bottom), width, height, facecolor=COLOURS[shard], edgecolor="white", linewidth=0.8)
        axes.add_patch(box)
        if width > 2:
            colour = "white" if shard < len(SHARD_SIZES) * 0.55 else INK
            say(axes, left + width / 2, bottom + height / 2, str(shard), color=colour, fontsize=8)


def draw_mixed(axes: Axes, shards: np.ndarray, bottom: float, scale: float) -> None:
    """A stripe for each sample, of its shard's colour."""
    for start, stop in itertools.pairwise(edges_of_runs(shards)):
        left, width = start * scale, (stop - start) * scale
        axes.add_patch(Rectangle((left, bottom), width, MIXED_HEIGHT, facecolor=COLOURS[shards[start]], linewidth=0))


def draw_batches(axes: Axes) -> None:
    """The slices of all lanes that are global batches."""
    count = SAMPLES_PER_LANE_AND_STEP
    width = count * WIDTH / LANE_LENGTH
    say(axes, -1.5, LANES_BOTTOM - 2.4, "global batch", ha="right")
    for batch in range(num_batches_of_epoch(NUM_SAMPLES, NUM_LANES, NUM_LANES * count)):
        style = {"color": FRAME, "weight": "bold"} if batch == SHOWN_BATCH else {}
        say(axes, (batch + 0.5) * width, LANES_BOTTOM - 2.4, str(batch), fontsize=8, **style)
    corner, height = (SHOWN_BATCH * width, LANES_BOTTOM - 0.9), LANES_TOP - LANES_BOTTOM + 1.8
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=FRAME, linewidth=1.8, zorder=5))
    heading(axes, 0, LANES_BOTTOM - 7.6, f"4  A global batch takes {count} samples of every lane")
    say(axes, WIDTH, LANES_BOTTOM - 5.9, "the same set of samples for 1, 2 and 4 ranks", ha="right", fontsize=8)


def draw_ranks(axes: Axes) -> None:
    """Which rank reads which lanes."""
    heading(axes, RANKS_LEFT, LANES_TOP + 3.2, "5  A rank reads whole lanes")
    for column, world_size in enumerate((1, 2, 4)):
        left = RANKS_LEFT + column * RANK_STEP
        say(axes, left + RANK_WIDTH / 2, LANES_TOP + 1.7, f"{world_size} rank{'s' * (world_size > 1)}")
        for rank in range(world_size):
            lanes = lanes_of_rank(rank, world_size, NUM_LANES)
            height = (len(lanes) - 1) * LANE_STEP + LANE_HEIGHT
            bottom = LANES_TOP - lanes[0] * LANE_STEP - height
            corner, pad = (left + 0.4, bottom + 0.4), "round,pad=0.4"
            style = {"boxstyle": pad, "facecolor": RANK_FILL, "edgecolor": FAINT, "linewidth": 0.8}
            axes.add_patch(FancyBboxPatch(corner, RANK_WIDTH - 0.8, height - 0.8, **style))
            say(axes, left + RANK_WIDTH / 2, bottom + height / 2, f"rank {rank}")


def heading(axes: Axes, left: float, below: float, text: str) -> None:
    """What a part of the drawing shows, above it."""
    say(axes, left, below + 1.7, text, ha="left", weight="bold")


def say(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    """Text around a point."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", **style})


if __name__ == "__main__":
    main()
