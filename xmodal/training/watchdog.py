"""A watchdog for a rank that makes no progress: it says where the rank stands, and ends it."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

EXIT_STALLED = 70
"""Exit code of a rank that its watchdog has ended: EX_SOFTWARE of sysexits.h."""


class Watchdog:
    """Ends this process when `progress` was not called for `seconds`, after writing the stacks of all its threads.

    A thread of its own: it runs while the main one waits for other ranks, a disk, or a GPU.
    """

    def __init__(self, seconds: float, rank: int) -> None:
        self._seconds, self._rank = seconds, rank
        self._last = time.monotonic()
        self._doing = "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def progress(self, doing: str) -> None:
        """Something was finished; what comes now is `doing`."""
        self._doing, self._last = doing, time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self._end()

    def _end(self) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        # Last, where it is read first; by hand, since no thread may be waited for.
        sys.stderr.write(
            f"xmodal: rank {self._rank}: {self._doing} has taken more than {self._seconds:g} s\n"
            "        the stacks above say where; see what the other ranks say, or raise step_timeout\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_STALLED)
