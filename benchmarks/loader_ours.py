"""The contenders of `loader.py` that run in our environment: `TrainStream`, and bare decoding as a limit.

python benchmarks/loader_ours.py xmodal measure '{"folder": ...}'
"""

import io
import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import loader_process
import torch
from loader_process import MEAN, SIDE, STD, Contender, Plan
from PIL import Image

from shards.augment import AugmentConfig
from shards.batches import Normaliser
from shards.stream import StreamConfig, TrainStream
from shards.view import open_view


def main() -> None:
    """Do what the arguments say."""
    name, task, plan = sys.argv[1:]
    contenders: dict[str, Contender] = {"xmodal": Xmodal(), "decode": Decode()}
    loader_process.run(contenders, name, task, Plan(**json.loads(plan)))


class Xmodal:
    """Its batches are normalised where they arrive, as in training; here by the CPU, so that is counted."""

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """One epoch."""
        stream = TrainStream(
            open_view(str(Path(plan.folder, "view"))),
            config=StreamConfig(num_lanes=plan.batch_size, num_workers=plan.num_workers, seed=plan.seed),
            size=SIDE,
            augment=AugmentConfig(min_crop_area=0.08, max_crop_aspect=4 / 3, flip=True),
            global_batch_size=plan.batch_size,
        )
        normalise = Normaliser(MEAN, STD)
        for [batch] in stream:
            yield normalise(batch.pixels)

    def pictures(self, plan: Plan) -> Iterator[bytes]:
        """One epoch."""
        view = open_view(str(Path(plan.folder, "view")))
        for row in view.table.to_pylist():
            yield view.datasets[row["dataset"]].read_range(row["shard"], row["image_offset"], row["image_length"])


class Decode:
    """What no loader that decodes whole pictures with Pillow can exceed: that alone, of bytes in memory."""

    def batches(self, plan: Plan) -> Iterator[list[tuple[int, int]]]:
        """One epoch; of each picture its size, so that next to nothing is handed over."""
        pictures = list(self.pictures(plan))
        starts = range(0, len(pictures), plan.batch_size)
        # Forked, so that the workers have the pictures without a copy.
        with multiprocessing.get_context("fork").Pool(plan.num_workers, _begin, (pictures, plan.batch_size)) as pool:
            yield from pool.imap(_decode_batch, starts)

    def pictures(self, plan: Plan) -> Iterator[bytes]:
        """One epoch."""
        return Xmodal().pictures(plan)


_work: tuple[list[bytes], int] = [], 0
"""Of a decoding process: all pictures, and how many to decode at a time."""


def _begin(pictures: list[bytes], batch_size: int) -> None:
    global _work
    _work = pictures, batch_size
    # As in a process that makes batches: having freed something larger, the C library's allocator keeps the memory of
    # one picture for the next. Else the kernel clears new pages for each of them, and this would be no limit.
    larger = bytearray(1 << 24)
    del larger


def _decode_batch(start: int) -> list[tuple[int, int]]:
    pictures, batch_size = _work
    batch = pictures[start : start + batch_size]
    return [Image.open(io.BytesIO(picture)).convert("RGB").size for picture in batch]


if __name__ == "__main__":
    main()
