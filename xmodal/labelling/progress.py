"""How far a label run is: a bar on a terminal, a line now and then elsewhere, and a file that any machine can read."""

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LEFTOVER_AGE_SECONDS, Storage
from xmodal.labelling.task import UnitJob, UnitResult
from xmodal.posts.readers import ReadShare

log = logging.getLogger(__name__)

STATUS_NAME = "status.json"
"""Lies in the dataset while a run is under way; a finished dataset has none."""
_STATUS_SECONDS = 5.0
_LOG_SECONDS = 10.0
_STATUS_FIELDS = {
    **dict.fromkeys(("started", "updated", "posts_read", "samples", "bytes"), int),
    **dict.fromkeys(("units_in_flight", "units_committed", "units_waiting"), int),
    "state": str,
    "share_read": float,
    "failures": dict,
}
SILENT_SECONDS = 60.0
"""A status file that is older was left by a run that has ended."""


@dataclass(kw_only=True)
class InputCounts:
    """What was read of the input so far."""

    read: ReadShare = field(default_factory=ReadShare)
    units_passed_over: int = 0
    """Units that an earlier run had committed."""
    posts: int = 0
    media: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rule of `select` → how many posts it left out; `forgotten` counts those of the tombstones."""


class Progress:
    """Counts what the driver hands out and what comes back, and tells that a run is under way for as long as it is.

    Use it as a context, around all that writes to the dataset: its status file is there from the first moment to the
    last, and kept fresh meanwhile. After an error it stays, and says that the run was stopped.
    """

    def __init__(self, storage: Storage, what: str, counts: InputCounts) -> None:
        self._storage = storage
        self._what = what
        self._read = counts
        self._started = self._logged = time.time()
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="status", daemon=True)
        self._handed_out = self._committed = self._samples = self._bytes = 0
        self._all_read = False
        self._failures: Counter[str] = Counter()
        self.outages: list[str] = []
        """Jobs that wait for their pictures, and why."""
        self.broken: list[str] = []
        """Jobs that an error ended, and which."""
        self._state = "running"
        self._bar = tqdm(unit=" units", file=sys.stderr, dynamic_ncols=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        self._write()
        self._writer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._writer.join()
        if self._state == "running":
            self._all_ended()
        if kind:
            self._state = "stopped"
            self._write()
        else:
            self._storage.delete(STATUS_NAME)
            self._storage.discard_leftovers(LEFTOVER_AGE_SECONDS, {STATUS_NAME})

    def finishing(self) -> None:
        """No more jobs: what is left to do is the summaries of the dataset."""
        self._all_ended()
        self._state = "finishing"
        self._write()

    def _all_ended(self) -> None:
        if self._bar:
            self._bar.close()
        if self._committed:
            self._tell()

    def watching(self, jobs: Iterator[UnitJob]) -> Iterator[UnitJob]:
        """The same jobs, counted as they are handed out."""
        for job in jobs:
            self._handed_out += 1
            yield job
        self._all_read = True

    def ended(self, result: UnitResult) -> None:
        """A job has ended."""
        if result.is_committed:
            self._committed += 1
            self._samples += result.num_samples
            self._bytes += result.num_bytes
            self._failures += result.failures
        else:
            why = result.broken or result.outage
            log.warning("%s %s: %s; it waits for another run", self._what, result.name, why)
            (self.broken if result.broken else self.outages).append(f"{result.name}: {why}")
        now = time.time()
        if self._bar is not None:
            self._bar.total = self._expected_units()
            self._bar.update()
            self._bar.set_postfix_str(f"{self._samples} samples, {sum(self._failures.values())} failures")
        elif now - self._logged > _LOG_SECONDS:
            self._logged = now
            self._tell()

    @property
    def _num_waiting(self) -> int:
        return len(self.outages) + len(self.broken)

    def _expected_units(self) -> int | None:
        """How many units this run will have, by how much of the input was read so far; None if that is not known."""
        if self._all_read:
            return self._handed_out
        passed_over, share = self._read.units_passed_over, self._read.read.share()
        return round((self._handed_out + passed_over) / share) - passed_over if share else None

    def _tell(self) -> None:
        seconds = max(time.time() - self._started, 1e-9)
        log.info(
            "%d units committed, %d samples (%.0f a second), %d failures",
            *(self._committed, self._samples, self._samples / seconds, sum(self._failures.values())),
        )

    def _write_now_and_then(self) -> None:
        """In a thread of its own: between two units that end, many minutes may pass."""
        while not self._ended.wait(_STATUS_SECONDS):
            self._write()

    def _write(self) -> None:
        status = {
            "state": self._state,
            "started": round(self._started),
            "updated": round(time.time()),
            "posts_read": self._read.posts,
            "share_read": 1.0 if self._all_read else round(self._read.read.share(), 4),
            "units_in_flight": self._handed_out - self._committed - self._num_waiting,
            "units_committed": self._committed,
            "units_waiting": self._num_waiting,
            "samples": self._samples,
            "bytes": self._bytes,
            "failures": dict(sorted(self._failures.copy().items())),
        }
        # A status that cannot be written ends no run: what is wrong with the storage, the units will tell.
        with suppress(OSError, UserError):
            self._storage.replace(STATUS_NAME, json.dumps(status, indent=2).encode() + b"\n")


def read_status(storage: Storage) -> dict[str, Any] | None:
    """What the run under way last said of itself; None where there is none."""
    try:
        content = storage.read(STATUS_NAME)
    except FileNotFoundError:
        return None
    return parse_json_object(content, f"{storage.url}/{STATUS_NAME}", "look again in some seconds", _STATUS_FIELDS)


def status_text(url: str, status: Mapping[str, Any], num_shards: int, now: float) -> str:
    """A status file for people."""
    age = now - status["updated"]
    state = status["state"]
    if state == "running" and age > SILENT_SECONDS:
        state = f"not heard of for {age:.0f} s; if it has ended, the same command goes on"
    seconds = max(status["updated"] - status["started"], 1)
    failures = ", ".join(f"{count} {reason}" for reason, count in status["failures"].items()) or "none"
    units = f"{status['units_committed']} committed, {status['units_in_flight']} in flight"
    if status["units_waiting"]:
        units += f", {status['units_waiting']} wait for another run"
    return "\n".join(
        [
            f"{url}: {state}",
            f"  shards in the dataset  {num_shards}",
            f"  posts read             {status['posts_read']} ({status['share_read']:.1%} of the input)",
            f"  units of this run      {units}",
            f"  samples of this run    {status['samples']} ({status['samples'] / seconds:.1f} a second), "
            f"{status['bytes'] / 2**20:.0f} MiB",
            f"  failures of this run   {failures}",
        ]
    )
