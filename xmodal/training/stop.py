"""Stop requests: SIGTERM to any rank, or a stop file, agreed on by all ranks at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

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

    def agreed(self, device: torch.device, *, looks_for_file: bool) -> bool:
        """Whether any rank was asked; all of them call it, and all get the same answer.

        One rank looks for the file: others may still see an older listing, and need not ask the file system.
        """
        asked = self._told_by_signal or (looks_for_file and self.stop_file.exists())
        votes = torch.tensor([int(asked)], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def answered(self) -> None:
        """Take the stop file away, so that the run can go on."""
        self.stop_file.unlink(missing_ok=True)
