"""When a failed try is made again: pure decisions."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
PAUSE_STATUS = frozenset({429, 503})
"""With these a host may say for how long it wants to be left alone."""


def backoff_wait(backoff_seconds: float, max_backoff_seconds: float, num_failures: int, jitter: float) -> float:
    """Seconds to wait after so many failed tries: up to twice as long with each, and anything below ("full jitter").

    `jitter` in [0, 1) says how much of it: what failed at one moment is not tried again at one moment.
    """
    # No more doublings than a float holds: a host that is down may fail for days.
    return jitter * min(max_backoff_seconds, backoff_seconds * 2.0 ** min(num_failures - 1, 60))


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """What a Retry-After header says, seconds or a date, as seconds from `now`; None where it says nothing sensible."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header[:15])
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):  # the latter for a year or a zone beyond all bounds
        return None
    # A date without a zone is in UTC, as HTTP has it.
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
