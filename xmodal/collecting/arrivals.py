"""What a stream of a service delivers, the same for all services."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from xmodal.posts.post import Post, UnreadablePostError

Cursor = dict[str, str | int | float]
"""Where a stream is to go on; what it holds, each source knows. Empty: from now on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One thing that a stream delivered; with none of the three, only a new place in the stream."""

    cursor: Cursor
    """Where to go on once this is written."""
    post: Post | UnreadablePostError | None = None
    deleted_post: str | None = None
    """The id of a post that was deleted."""
    deleted_author: str | None = None
    """The author, as posts name it, of an account that was deleted with all its posts."""


class StreamEndedError(Exception):
    """A connection is over, and another may be made. `wait_seconds`: how long the service asks to be left alone."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait_seconds = reason, wait_seconds


class Source(Protocol):
    """A live stream of one service."""

    def follow(self, cursor: Cursor, deliver: Callable[[Arrival], None], stopping: threading.Event) -> None:
        """Connect, catch up from `cursor`, and deliver what comes until the connection ends or `stopping` is set.

        Ends with StreamEndedError, or with UserError where trying again is of no use.
        """
