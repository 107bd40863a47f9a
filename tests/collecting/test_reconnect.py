import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from xmodal.collecting.reconnect import ReconnectConfig, asked_seconds, reconnect_wait


@given(st.integers(1, 10**6), st.floats(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_shorter_than_asked_or_longer_than_the_longest(num_failures, asked, jitter):
    config = ReconnectConfig(backoff_seconds=1.0, max_backoff_seconds=320.0)
    wait = reconnect_wait(config, num_failures, asked, jitter)
    assert asked <= wait <= max(480, asked + 1)


def test_the_wait_doubles_with_each_failure():
    config = ReconnectConfig(backoff_seconds=1.0, max_backoff_seconds=6.0)
    assert [reconnect_wait(config, number, 0.0, 0.5) for number in (1, 2, 3, 4, 5)] == [1, 2, 4, 6, 6]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"Retry-After": "Thu, 01 Jan 1970 00:16:50 GMT"}, 10),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "\u00b2"}, 0),
        ({"Retry-After": "1 Jan 99999999999999999999 00:00:00 GMT"}, 0),
        ({"x-rate-limit-reset": "1030"}, 30),
        ({"x-rate-limit-reset": "900"}, 0),
        ({"X-RateLimit-Reset": "1970-01-01T00:17:00.000Z"}, 20),
        ({"X-RateLimit-Reset": "later"}, 0),
        ({"Retry-After": "7", "x-rate-limit-reset": "1030"}, 7),
    ],
)
def test_services_say_in_several_ways_how_long_to_stay_away(headers, seconds):
    assert asked_seconds(CaseInsensitiveDict(headers), now=1000) == seconds
