"""What is the same in the process of every contender of `loader.py`, in our environment and in the peers'.

It knows nothing of a contender but its batches and its pictures, and imports neither ours nor theirs.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all contenders of a size are given."""

    folder: str
    """Holds `tars`, `view` and, where a peer wants it, `mds`: the same pictures."""
    batch_size: int
    num_workers: int
    prefetch_factor: int
    """Batches that a worker may be ahead."""
    warm_up_batches: int
    """Not counted: while they come, the workers start."""
    counted_batches: int
    seed: int = 0

    def tars(self) -> list[str]:
        """The shards' paths, in their order."""
        return [str(path) for path in sorted(Path(self.folder, "tars").glob("*.tar"))]


class Contender(Protocol):
    """A way to read the pictures."""

    def batches(self, plan: Plan) -> Iterator[Any]:
        """One epoch, a batch at a time: float32 `(batch_size, 3, SIDE, SIDE)`, or anything as long for a limit."""

    def pictures(self, plan: Plan) -> Iterable[bytes]:
        """The encoded pictures of one epoch, in any order."""


def run(contenders: Mapping[str, Contender], name: str, task: str, plan: Plan) -> None:
    """`check` or `measure` a contender and print the result as the last line, JSON."""
    torch.set_num_threads(1)  # as in the workers: DataLoader sees to that
    torch.manual_seed(plan.seed)
    result = {"check": check, "measure": measure}[task](contenders[name], plan)
    print("\n" + json.dumps(result), flush=True)


def measure(contender: Contender, plan: Plan) -> dict[str, Any]:
    """How long the counted batches took, of all cores' time how much, and how many images were in them."""
    batches = contender.batches(plan)
    warm_up = num_images(batches, plan.warm_up_batches)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    images = num_images(batches, plan.counted_batches)
    seconds, of_cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    return {"images": images, "seconds": seconds, "cpu_seconds": of_cpu, "warm_up_images": warm_up}


def cpu_seconds() -> float:
    """What this process and its workers have used so far; of a worker, to a hundredth of a second."""
    ticks = 0
    for worker in multiprocessing.active_children():
        # The name of the program, in parentheses, may hold spaces; of what follows, user and system time are these.
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def num_images(batches: Iterator[Any], num_batches: int) -> int:
    """Take some batches (fewer where they end); how many images were in them."""
    return sum(len(batch) for batch in itertools.islice(batches, num_batches))


def check(contender: Contender, plan: Plan) -> dict[str, Any]:
    """What tells whether contenders do the same work: their pictures, and for loaders what batches are like."""
    digests = sorted(hashlib.sha256(picture).digest() for picture in contender.pictures(plan))
    result: dict[str, Any] = {"pictures": f"{len(digests)}, sha256 {hashlib.sha256(b''.join(digests)).hexdigest()}"}
    first = list(itertools.islice(contender.batches(plan), plan.warm_up_batches))
    if isinstance(first[0], torch.Tensor):
        pixels = torch.cat(first)
        result["batches"] = ", ".join(sorted({f"{batch.dtype} {list(batch.shape)}" for batch in first}))
        result |= {"mean": pixels.mean().item(), "std": pixels.std().item()}
    return result
