"""Which scrub is at work on a dataset: each keeps a marker there while it works, for all other writers to see.

Whoever begins writes a sign of its own first and then looks for others'. So of two that begin at once at least one sees
the other and gives way; it may be both.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import Storage

SCRUB_SILENT_SECONDS = 60.0
"""A marker that is older was left by a scrub that was killed."""
_BEAT_SECONDS = 5.0
_PREFIX, _ENDING = "scrub-", ".json"


@contextmanager
def marked_as_scrubbing(storage: Storage) -> Iterator[Callable[[], None]]:
    """Keep a marker in the dataset; what is yielded raises UserError where another scrub may be at work as well.

    That is so where another marker is there, and where this one was not kept fresh, so that others may have taken it
    for a dead one's. Raises UserError likewise to begin with. Markers that were left by dead ones are removed.
    """
    refuse_scrubs(storage)  # before it is marked, since that would end them
    marker = _Marker(storage)
    marker.write()
    try:
        marker.require_alone()
        for name in _markers(storage, is_fresh=False):
            storage.delete(name)
        beat = threading.Thread(target=marker.keep_fresh, name="scrub marker", daemon=True)
        beat.start()
        try:
            yield marker.require_alone
        finally:
            marker.ended.set()
            beat.join()
        # On a local disk, this also makes all that was deleted before stay deleted, should the power fail now.
        marker.write()
    finally:
        storage.delete(marker.name)


def refuse_scrubs(storage: Storage) -> None:
    """Raise UserError while a scrub is at work on the dataset."""
    _refuse(storage, _markers(storage, is_fresh=True))


class _Marker:
    def __init__(self, storage: Storage) -> None:
        self.name = f"{_PREFIX}{uuid.uuid4().hex}{_ENDING}"
        self.ended = threading.Event()
        self._storage = storage
        self._written = 0.0

    def write(self) -> None:
        now = time.time()
        self._storage.replace(self.name, json.dumps({"updated": now}).encode() + b"\n")
        self._written = now

    def keep_fresh(self) -> None:
        """In a thread of its own: a shard takes as long as it takes."""
        while not self.ended.wait(_BEAT_SECONDS) and self._is_fresh():
            # What is wrong with the storage, the scrub itself will be told.
            with suppress(OSError, UserError):
                self.write()

    def require_alone(self) -> None:
        if not self._is_fresh():
            raise UserError(
                f"{self._storage.url}: this scrub was held up for more than {SCRUB_SILENT_SECONDS:.0f} s, so that "
                "another one may have begun",
                "run it again",
            )
        _refuse(self._storage, [name for name in _markers(self._storage, is_fresh=True) if name != self.name])

    def _is_fresh(self) -> bool:
        return time.time() - self._written <= SCRUB_SILENT_SECONDS


def _refuse(storage: Storage, markers: list[str]) -> None:
    if markers:
        raise UserError(
            f"{storage.url}: an `xmodal forget --scrub` is at work on it",
            f"let it end, or wait for {SCRUB_SILENT_SECONDS:.0f} s if it was killed; then run this again",
        )


def _markers(storage: Storage, *, is_fresh: bool) -> list[str]:
    """Names of the markers that are kept fresh, or of those that are not."""
    found = []
    for name in storage.names(_ENDING):
        if not name.startswith(_PREFIX):
            continue
        try:
            content = storage.read(name)
        except FileNotFoundError:  # it has just ended
            continue
        marker = parse_json_object(content, f"{storage.url}/{name}", "remove it", {"updated": float})
        if (time.time() - marker["updated"] <= SCRUB_SILENT_SECONDS) == is_fresh:
            found.append(name)
    return found
