"""Follow a live stream of posts and write those that are selected, until told to stop.

One thread reads the stream into a short queue; the other selects, drops what came before, and writes.
"""

import logging
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from shards.checks import require_folder, require_range
from shards.errors import ConfigError
from xmodal.collecting.arrivals import Arrival, Source
from xmodal.collecting.files import FilesConfig, PostFiles, open_files
from xmodal.collecting.reconnect import ReconnectConfig, keep_following
from xmodal.collecting.refusals import missing_extra
from xmodal.collecting.services import MASTODON_TOKEN, X_TOKEN, BlueskyConfig, MastodonConfig, XConfig, token
from xmodal.posts.post import Post
from xmodal.posts.selection import SelectConfig, rejection

log = logging.getLogger(__name__)

SourceName = Literal["x", "mastodon", "bluesky"]
_QUEUE = 1000
_POLL_SECONDS = 0.2
_CLIENTS = {"tweepy", "mastodon", "websockets"}


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """From a live stream to files of posts, which `xmodal label` reads."""

    source: SourceName
    """Service to follow. Tokens come from $X_BEARER_TOKEN and $MASTODON_ACCESS_TOKEN; Bluesky needs none."""
    folder: str
    """Folder for the files of posts. Run again, it goes on where it was; each source needs one of its own."""
    select: SelectConfig = field(default_factory=SelectConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    reconnect: ReconnectConfig = field(default_factory=ReconnectConfig)
    x: XConfig = field(default_factory=XConfig)
    mastodon: MastodonConfig = field(default_factory=MastodonConfig)
    bluesky: BlueskyConfig = field(default_factory=BlueskyConfig)
    max_posts: int = 0
    """Stop after so many posts written; 0 for no bound."""
    max_seconds: float = 0.0
    """Stop after so many seconds; 0 for no bound."""
    progress_seconds: float = 60.0
    """A line with counts and rate is logged so often."""

    def __post_init__(self) -> None:
        require_folder(self, "folder")
        require_range(self, "max_posts", "max_seconds", least=0)
        require_range(self, "progress_seconds", above=0)
        if not self.folder:
            raise ConfigError("folder", self.folder, "must name a folder")


@dataclass(frozen=True, kw_only=True)
class CollectSummary:
    """What one run has done."""

    folder: str
    posts: int
    """Written and not deleted meanwhile."""
    removed: int
    """Written, and taken out again because they were deleted while their file still grew."""
    rejected: dict[str, int]
    """Rule, or what made a record no post → how many; `duplicate_post`: written before."""
    deletions: int
    """Listed in deleted/."""
    files: list[str]


@dataclass(kw_only=True)
class _Counts:
    written: int = 0
    deletions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


def collect(config: CollectConfig) -> CollectSummary:
    """Collect until SIGTERM, SIGINT or a bound of the config. Raises UserError for what only its user can mend."""
    source = open_source(config)
    stopping = threading.Event()
    counts = _Counts()
    with _stop_on_signals(stopping), open_files(config.folder, config.source, config.files) as files:
        try:
            _write_arrivals(config, files, counts, _arrivals(source, files, stopping, config), stopping)
        finally:
            stopping.set()
    return CollectSummary(
        folder=config.folder,
        posts=counts.written - files.num_removed,
        removed=files.num_removed,
        rejected=dict(counts.rejected),
        deletions=counts.deletions,
        files=files.finished,
    )


def open_source(config: CollectConfig) -> Source:
    """The stream that the config names. Raises UserError where its client or its token is missing."""
    stall_seconds = config.reconnect.stall_seconds
    try:
        if config.source == "x":
            from xmodal.collecting.x_stream import XStream

            return XStream(config.x, token(X_TOKEN), stall_seconds)
        if config.source == "mastodon":
            from xmodal.collecting.mastodon_stream import MastodonStream

            return MastodonStream(config.mastodon, token(MASTODON_TOKEN), stall_seconds)
        from xmodal.collecting.bluesky_stream import BlueskyStream

        return BlueskyStream(config.bluesky, stall_seconds)
    except ModuleNotFoundError as error:
        client = (error.name or "").partition(".")[0]
        if client not in _CLIENTS:
            raise
        raise missing_extra(client) from error


def _arrivals(
    source: Source, files: PostFiles, stopping: threading.Event, config: CollectConfig
) -> Iterator[Arrival | None]:
    """What the stream delivers, read by a thread of its own; None now and then while it is silent."""
    arrived: queue.Queue[Arrival | BaseException] = queue.Queue(_QUEUE)

    def put(item: Arrival | BaseException) -> None:
        while not stopping.is_set():
            try:
                arrived.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            keep_following(source, files.cursor, put, stopping, config.reconnect)
        except BaseException as error:  # noqa: BLE001  told by the thread that waits for it
            put(error)

    # A daemon: it may hang in a read for as long as a stream may be silent.
    threading.Thread(target=read, name="stream", daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            yield None
            continue
        if isinstance(item, BaseException):
            raise item
        yield item


def _write_arrivals(
    config: CollectConfig,
    files: PostFiles,
    counts: _Counts,
    arrivals: Iterator[Arrival | None],
    stopping: threading.Event,
) -> None:
    started = told = time.monotonic()
    written_then = 0
    for arrival in arrivals:
        if arrival is not None:
            _write(arrival, config.select, files, counts)
        files.flush_when_due()
        now = time.monotonic()
        if now - told >= config.progress_seconds:
            log.info(
                "%s: %d posts, %.1f/s; rejected %d; deletions %d",
                config.source,
                counts.written,
                (counts.written - written_then) / (now - told),
                counts.rejected.total(),
                counts.deletions,
            )
            told, written_then = now, counts.written
        if 0 < config.max_posts <= counts.written or 0 < config.max_seconds <= now - started:
            return
        # What the thread has read already is written first: not every service gives it a second time.
        if stopping.is_set() and arrival is None:
            return


def _write(arrival: Arrival, select: SelectConfig, files: PostFiles, counts: _Counts) -> None:
    if isinstance(arrival.post, Post):
        reason = rejection(arrival.post, select)
        if reason is None and not files.add_post(arrival.post):
            reason = "duplicate_post"
        if reason is None:
            counts.written += 1
        else:
            counts.rejected[reason] += 1
    elif arrival.post is not None:
        counts.rejected[arrival.post.reason] += 1
    if arrival.deleted_post is not None or arrival.deleted_author is not None:
        files.add_deletion(post_id=arrival.deleted_post, author=arrival.deleted_author)
        counts.deletions += 1
    files.cursor = arrival.cursor


@contextmanager
def _stop_on_signals(stopping: threading.Event) -> Iterator[None]:
    """Set `stopping` on SIGTERM and SIGINT; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
