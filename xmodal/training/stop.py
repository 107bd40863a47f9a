"""What all ranks agree on between two steps: stop requests (SIGTERM to any of them, or a stop file), and failures."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.mistakes import mistake_of_all
from xmodal.training.ranks import Ranks

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, as the batch scripts have it."""


class StopRequest:
    """Whether this run was asked to stop."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self._told_by_signal = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for a request; before and after, it ends the process as ever."""

        def note(number: int, frame: FrameType | None) -> None:
            self._told_by_signal = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def is_asked(self, ranks: Ranks) -> bool:
        """Whether this rank knows of a request; others may know of one that it does not.

        The first rank looks for the file: others may still see an older listing, and need not ask the file system.
        """
        return self._told_by_signal or (ranks.is_first and self.stop_file.exists())

    def agreed(self, ranks: Ranks, device: torch.device, failure: UserError | None) -> tuple[bool, UserError | None]:
        """Whether any rank was asked, and a failure for which one of them cannot go on.

        All ranks call it, each with its own failure, and all get the same answer; the first alone tells of the failure.
        """
        votes = torch.tensor([self.is_asked(ranks), failure is not None], dtype=torch.int, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        any_asked, any_failed = votes.tolist()
        return bool(any_asked), mistake_of_all(failure) if any_failed else None

    def answered(self) -> None:
        """Take the stop file away, so that the run can go on."""
        self.stop_file.unlink(missing_ok=True)
