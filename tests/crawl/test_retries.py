from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.crawl.retries import backoff_wait, retry_after_seconds

NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)


def test_the_longest_wait_doubles_up_to_a_limit():
    assert [backoff_wait(0.5, 3, failures, 1.0) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff_wait(0.5, 3, 10_000, 1.0) == 3.0


@given(
    base=st.floats(0, 100),
    most=st.floats(0, 100),
    failures=st.integers(1, 5000),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_anything_from_nothing_to_the_longest(base, most, failures, jitter):
    assert backoff_wait(base, most, failures, 0.0) == 0
    assert 0 <= backoff_wait(base, most, failures, jitter) <= min(most, base * 2.0 ** min(failures, 60))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2026 09:28:30 +0200", 30),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30),
        ("Wednesday, 21-Oct-26 07:29:00 GMT", 60),
        ("Wed, 21 Oct 2025 07:28:30 GMT", 0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0662", None),
        ("Wed, 99 Oct 2026 07:28:30 GMT", None),
        ("1 Jan 99999999999999999999 00:00:00 GMT", None),
    ],
)
def test_a_pause_is_read_in_seconds_or_as_a_date(header, seconds):
    assert retry_after_seconds(header, NOW) == seconds


@given(header=st.text(max_size=80) | st.integers(0, 10**100).map(str))
def test_any_other_header_is_no_pause(header):
    seconds = retry_after_seconds(header, NOW)
    assert seconds is None or seconds >= 0
