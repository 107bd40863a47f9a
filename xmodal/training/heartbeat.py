"""Ranks say every few seconds that they run: one that is lost is named, whatever the others wait for meanwhile."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.ranks import Ranks

_LONGEST_INTERVAL = 5.0
_LONGEST_PARTING = 5.0
"""Seconds. The first rank waits so long for the others to part, since the store goes with it."""
_PARTED = b"parted"
_LOST = "lost"


class Heartbeat:
    """Ends this process with exit code 2 where another rank was not heard of for `timeout` seconds.

    By the store that the first rank keeps, and by threads of its own: whoever waits for a lost rank in a collective may
    wait for ever, and in one of NCCL's it can do nothing else. The first rank listens to all others, and tells them
    whom it misses; these listen to the first alone.
    """

    def __init__(self, ranks: Ranks, timeout: float, lost_error: Callable[[Sequence[int]], UserError]) -> None:
        """Say for the first time that this rank runs. `lost_error` makes what is told of lost ranks."""
        self._ranks, self._lost_error = ranks, lost_error
        self._interval = min(_LONGEST_INTERVAL, timeout / 10)
        # Silence is counted in beats of one's own, not by the clock: where a job is suspended (`scontrol suspend`), all
        # of it is.
        self._most_silent = math.ceil(timeout / self._interval)
        self._silent_beats = 0
        """Of the store."""
        self._lost: list[int] = []
        self._closed, self._has_parted = threading.Event(), False
        self._telling = threading.Lock()
        self._store = dist.distributed_c10d._get_default_store().clone()  # whose connection nobody else waits for
        self._store.set(_key(ranks.rank), "0")
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat-{target.__name__}", daemon=True)
            for target in (self._beat, self._watch)
        ]

    def start(self) -> None:
        """Go on saying so, and listen to the others, which must all have said so once."""
        if self._ranks.world_size > 1:
            for thread in self._threads:
                thread.start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nobody misses a rank that has done its work; one that has failed tells by itself why.

        Does not return where this process is being ended for a lost rank.
        """
        self._has_parted = error is None
        self._closed.set()
        if not self._telling.acquire(blocking=False):
            threading.Event().wait()
        if self._has_parted and self._threads[0].is_alive():
            self._threads[0].join(2 * _LONGEST_PARTING)

    def _beat(self) -> None:
        """By a thread of its own: where the link to it is cut, the store keeps whoever asks it for ever."""
        said = dict.fromkeys(range(1, self._ranks.world_size), b"")
        silent_beats = dict.fromkeys(said, 0)
        beats = 0
        # The store has gone with the first rank, which may have parted; it is missed, or not, as one that is silent.
        with suppress(RuntimeError):
            while not self._closed.wait(self._interval):
                beats += 1
                self._store.set(_key(self._ranks.rank), str(beats))
                if self._ranks.is_first:
                    self._listen(said, silent_beats)
                elif self._store.check([_LOST]):
                    self._lost = json.loads(self._store.get(_LOST))
                self._silent_beats = 0
            if self._has_parted:
                self._store.set(_key(self._ranks.rank), _PARTED.decode())
                if self._ranks.is_first:
                    self._wait_for_others()

    def _listen(self, said: dict[int, bytes], silent_beats: dict[int, int]) -> None:
        """Of the first rank: see whether the others have said anything new since `said`, which is brought up to now."""
        for rank, now in zip(said, self._said_by_others(), strict=True):
            silent_beats[rank] = silent_beats[rank] + 1 if now == said[rank] != _PARTED else 0
            said[rank] = now
        lost = [rank for rank, beats in silent_beats.items() if beats >= self._most_silent]
        if lost:
            self._store.set(_LOST, json.dumps(lost))
            self._lost = lost

    def _said_by_others(self) -> list[bytes]:
        return self._store.multi_get([_key(rank) for rank in range(1, self._ranks.world_size)])

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _LONGEST_PARTING
        while {*self._said_by_others()} != {_PARTED} and time.monotonic() < deadline:
            time.sleep(0.02)

    def _watch(self) -> None:
        """By a thread that waits for nobody."""
        while not self._closed.wait(self._interval):
            self._silent_beats += 1
            if self._lost:
                self._end(self._lost)
            elif self._silent_beats > self._most_silent:
                # Under torchrun, the first rank's store is in another process, which it can lose.
                self._end([] if self._ranks.is_first else [0])

    def _end(self, lost: Sequence[int]) -> None:
        if not self._telling.acquire(blocking=False):
            return
        if self._ranks.is_first:
            time.sleep(2 * self._interval)  # until the others have heard of it
        error = self._lost_error(lost)
        if self._ranks.rank in lost:
            error = UserError(
                f"rank {self._ranks.rank}: stood still for so long that the others have gone without it",
                "see what its host was busy with; started again, the run goes on from its last checkpoint",
            )
        # By hand, since no thread may be waited for.
        sys.stderr.write(f"xmodal: {error}\n")
        sys.stderr.flush()
        os._exit(2)


def _key(rank: int) -> str:
    return f"beat/{rank}"
