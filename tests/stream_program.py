"""Read a training stream as a trainer does, without a model: a program for torchrun.

    torchrun --nproc-per-node 2 tests/stream_program.py VIEW FOLDER LAST_STEP WORKERS CACHE_GIB STEP_SECONDS

Each rank appends a line a step to FOLDER/rank-<rank>-of-<ranks>.jsonl: the step, and key and hash of pixels of each
sample. Rank 0 keeps the state after each step in FOLDER/state.json, and goes on from it if it is there. All ranks wait
for each other after each step, as in training, of which STEP_SECONDS take the place.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shards.augment import AugmentConfig
from shards.batches import Batch
from shards.storage import LocalStorage
from shards.stream import StreamConfig, TrainStream
from shards.view import View, open_view

CONFIG = StreamConfig(num_lanes=8, shards_per_block=2, seed=5)
GLOBAL_BATCH_SIZE, SIZE = 16, 24


def open_stream(view: View, config: StreamConfig, **ranks: int) -> TrainStream:
    """The stream that all runs of this program read."""
    augment = AugmentConfig(color_jitter=0.3)
    return TrainStream(
        view, config=config, size=SIZE, augment=augment, global_batch_size=GLOBAL_BATCH_SIZE, micro_batches=1, **ranks
    )


def describe(keys: list[str], batch: Batch) -> list[list[str]]:
    """Key and hash of pixels of each sample."""
    hashes = [hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] for pixels in batch.pixels]
    return [[keys[row], mark] for row, mark in zip(batch.rows.tolist(), hashes, strict=True)]


def total_step(stream: TrainStream) -> int:
    """Steps since the first epoch began."""
    return stream.epoch * stream.steps_per_epoch + stream.step


def main() -> None:
    """Read on to the last step."""
    url, folder, last_step, num_workers, cache_gib, step_seconds = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    view = open_view(url)
    config = dataclasses.replace(
        CONFIG, num_workers=int(num_workers), cache_folder=f"{folder}/cache", max_cache_gib=float(cache_gib)
    )
    stream = open_stream(view, config, rank=rank, world_size=world_size)
    state = Path(folder, "state.json")
    if state.exists():
        stream.load_state_dict(json.loads(state.read_text()))
    dist.barrier()
    keys = view.split("train").rows["key"].to_pylist()
    with open(Path(folder, f"rank-{rank}-of-{world_size}.jsonl"), "a") as lines:
        while total_step(stream) < int(last_step):
            step(stream, keys, lines, LocalStorage(folder))
            time.sleep(float(step_seconds))
    stream.close()
    dist.destroy_process_group()


def step(stream: TrainStream, keys: list[str], lines: Any, folder: LocalStorage) -> None:
    """Read one step, and say so."""
    number = total_step(stream)
    [batch] = next(iter(stream))
    lines.write(json.dumps({"step": number, "samples": describe(keys, batch)}) + "\n")
    lines.flush()
    dist.barrier()
    if dist.get_rank() == 0:
        folder.replace("state.json", json.dumps(stream.state_dict()).encode())
    dist.barrier()


if __name__ == "__main__":
    main()
