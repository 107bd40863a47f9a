"""When a stream that ended is connected again: backoff with jitter, and never sooner than the service asks."""

import email.utils
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shards.checks import require_range
from xmodal.collecting.arrivals import Arrival, Cursor, Source, StreamEndedError

log = logging.getLogger(__name__)

_LONGEST_WAIT = 86_400.0
"""Seconds. A service that asks for more has mistaken the unit, or is asked once a day."""


@dataclass(frozen=True, kw_only=True)
class ReconnectConfig:
    """How a stream that ended is connected again. There is no last try: a service may be down for a day."""

    backoff_seconds: float = 1.0
    """Wait before the first new connection; doubled for each that brings nothing, and varied by half."""
    max_backoff_seconds: float = 320.0
    """Longest wait, unless the service itself asks for a longer one."""
    stall_seconds: float = 60.0
    """A stream that sends nothing for so long, not even a sign of life, is given up and connected again. X sends one
    every 20 s, Mastodon every 15 s."""

    def __post_init__(self) -> None:
        require_range(self, "backoff_seconds", "max_backoff_seconds", "stall_seconds", above=0)


def keep_following(
    source: Source,
    cursor: Cursor,
    deliver: Callable[[Arrival], None],
    stopping: threading.Event,
    config: ReconnectConfig,
) -> None:
    """Follow a stream over any number of connections until `stopping` is set. Raises the source's UserErrors."""
    num_failures = 0

    def deliver_and_remember(arrival: Arrival) -> None:
        nonlocal cursor, num_failures
        deliver(arrival)
        cursor, num_failures = arrival.cursor, 0

    while not stopping.is_set():
        try:
            source.follow(cursor, deliver_and_remember, stopping)
            ended = StreamEndedError("closed by the server")
        except StreamEndedError as error:
            ended = error
        num_failures += 1
        wait = min(reconnect_wait(config, num_failures, ended.wait_seconds, random.random()), _LONGEST_WAIT)
        if not stopping.is_set():
            log.warning("stream ended (%s); connecting again in %.1f s", ended.reason, wait)
        stopping.wait(wait)


def reconnect_wait(config: ReconnectConfig, num_failures: int, asked_seconds: float, jitter: float) -> float:
    """Seconds until the next connection, after so many in a row that brought nothing; `jitter` lies in [0, 1)."""
    # Far more doublings than it takes to reach the longest wait, and few enough for a float to hold.
    backoff = config.backoff_seconds * 2 ** min(num_failures - 1, 60)
    # All of a service's clients lost their connection at once, and were told the same moment to come back.
    return max(min(backoff, config.max_backoff_seconds) * (0.5 + jitter), asked_seconds + jitter)


def asked_seconds(headers: Mapping[str, str], now: float) -> float:
    """How long an answer asks to be left alone: `Retry-After`, else when its limit is reset; 0 where it does not say.

    `headers` must not mind the case of names. `now`: seconds since 1970.
    """
    retry_after = headers.get("Retry-After")
    if retry_after is not None:
        if _is_number(retry_after):
            return float(retry_after)
        moment = _http_date(retry_after)
        return max(0.0, moment - now) if moment else 0.0
    reset = headers.get("X-Rate-Limit-Reset") or headers.get("X-RateLimit-Reset")
    if reset is None:
        return 0.0
    # X gives seconds since 1970, Mastodon a moment of ISO 8601.
    moment = float(reset) if _is_number(reset) else _iso_date(reset)
    return max(0.0, moment - now) if moment else 0.0


def _is_number(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdecimal()


def refusal_wait(status: int, headers: Mapping[str, str]) -> float:
    """How long to stay away after an error; after 429 at least a minute where the answer does not say."""
    asked = asked_seconds(headers, time.time())
    return asked or (60.0 if status in (420, 429) else 0.0)


def _http_date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _iso_date(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
