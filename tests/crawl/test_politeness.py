import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from xmodal.crawl.politeness import Admission, HostConfig, HostLimits, Over, PolitenessConfig

UNLIMITED = {"requests_per_second": 0.0, "max_concurrent": 0}


def limits(**settings: float) -> HostLimits:
    return HostLimits(PolitenessConfig(**(UNLIMITED | settings)))


def end(host: HostLimits, over: Over, now: float) -> bool:
    """Requests that were under way are over."""
    host.release(min(over.num_requests, host.num_open))
    return host.settle(over, now)


def fail(host: HostLimits, count: int, now: float) -> bool:
    return end(host, Over(failures=count), now)


@given(
    rate=st.sampled_from([0.5, 1.0, 7.0, 20.0, 333.0]),
    arrivals=st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 40)), min_size=1, max_size=200),
)
def test_no_second_holds_more_than_its_share(rate, arrivals):
    host, now, sent = limits(requests_per_second=rate), 0.0, []
    for gap, wanted in arrivals:
        now += gap
        granted = host.admit(wanted, now).granted
        assert granted <= wanted
        sent += [now] * granted
    at_once = max(1, int(rate * 0.02))
    for first, start in enumerate(sent):
        assert sum(start <= time < start + 1 for time in sent[first:]) <= rate + at_once + 1e-6


@given(rate=st.sampled_from([1.0, 20.0, 333.0]), wanted=st.integers(1, 50))
def test_one_who_waits_as_long_as_told_is_let_through_and_the_rate_is_reached(rate, wanted):
    host, now, sent = limits(requests_per_second=rate), 0.0, 0
    while now < 10:
        admission = host.admit(wanted, now)
        sent += admission.granted
        now += 0.0 if admission.granted else admission.wait + 1e-9
    assert sent >= 10 * rate - 1


@given(limit=st.integers(1, 5), steps=st.lists(st.tuples(st.booleans(), st.integers(1, 7)), max_size=60))
def test_never_more_are_under_way_than_allowed(limit, steps):
    host, open_requests = limits(max_concurrent=limit), 0
    for enters, count in steps:
        if enters:
            open_requests += host.admit(count, 0.0).granted
        else:
            over = min(count, open_requests)
            end(host, Over(answers=over), 0.0)
            open_requests -= over
        assert open_requests == host.num_open <= limit
    if host.num_open < limit:
        assert host.admit(1, 0.0).granted == 1
    else:
        assert host.admit(1, 0.0).wait == math.inf


def test_a_pause_holds_for_all_and_ends():
    host = limits(max_pause_seconds=10.0)
    end(host, Over(answers=1, retry_after=5.0), 100.0)
    end(host, Over(answers=1, retry_after=1.0), 101.0)  # a shorter one does not shorten it
    assert host.admit(1, 104.9).wait == pytest.approx(0.1)
    assert host.admit(1, 105.0).granted == 1


def test_a_pause_longer_than_one_waits_gives_the_host_up_until_it_is_short_enough():
    host = limits(max_pause_seconds=10.0)
    end(host, Over(answers=1, retry_after=60.0), 0.0)
    assert host.admit(1, 1.0).is_down
    assert not host.admit(1, 51.0).is_down
    assert host.admit(1, 60.0).granted == 1


def test_a_host_that_gives_no_answer_is_asked_by_one_request_now_and_then_until_it_is_back():
    host = limits(failures_to_open=3, patience_seconds=60.0)
    host.admit(3, 0.0)
    assert fail(host, 2, 0.0)  # they count as tries
    assert not fail(host, 1, 0.5)
    probes, now = [], 0.5
    while not host.admit(5, now).is_down:
        if host.num_open:
            assert host.admit(5, now).granted == 0
            probes.append(now)
            assert not fail(host, 1, now + 0.1)
        now += 0.1
    assert now == pytest.approx(60.1, abs=0.2)
    waits = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert waits == sorted(waits)
    assert 4 <= len(probes) <= 8
    # Given up, it is still asked now and then, and an answer opens it for all.
    while not host.admit(1, now).granted:
        now += 0.1
    assert end(host, Over(answers=1), now)
    assert host.admit(5, now).granted == 5


def test_whoever_comes_while_a_host_that_was_given_up_is_asked_waits_for_its_answer():
    host = limits(failures_to_open=3, patience_seconds=60.0)
    host.admit(3, 0.0)
    fail(host, 3, 0.0)
    assert host.admit(5, 1000.0).granted == 1
    assert host.admit(4, 1000.0) == Admission()
    assert end(host, Over(answers=1), 1000.5)
    assert host.admit(4, 1000.5).granted == 4


def test_a_probe_of_which_nothing_is_known_is_not_repeated_at_once():
    host = limits(failures_to_open=3)
    host.admit(3, 0.0)
    fail(host, 3, 0.0)
    for second in range(1, 5):
        assert host.admit(1, second).granted == 1
        end(host, Over(unknown=1), second)
        assert host.admit(1, second + 0.5).granted == 0


def test_an_answer_between_failures_says_that_the_host_is_there():
    host = limits(failures_to_open=3)
    for _ in range(10):
        host.admit(3, 0.0)
        assert fail(host, 2, 0.0)
        assert end(host, Over(answers=1), 0.0)


def test_pictures_that_stall_say_nothing_of_their_host():
    host = limits(failures_to_open=3)
    host.admit(20, 0.0)
    assert end(host, Over(unknown=20), 0.0)
    assert host.admit(20, 0.0).granted == 20


def test_a_host_is_forgotten_only_when_nothing_is_lost():
    host = limits(requests_per_second=1.0)
    assert host.is_idle(0.0)
    host.admit(1, 0.0)
    assert not host.is_idle(0.5)
    end(host, Over(answers=1), 0.5)
    assert not host.is_idle(0.9)
    assert host.is_idle(1.0)
    fail(host, 1, 1.0)
    assert not host.is_idle(100.0)
    assert host.is_idle(1000.0)  # given up long ago


@pytest.mark.parametrize("host", ["", "https://a.org", "a.org/b", "A.org"])
def test_what_is_no_hosts_name_is_refused(host):
    with pytest.raises(ConfigError):
        HostConfig(host=host, requests_per_second=1, max_concurrent=1)


@pytest.mark.parametrize("setting", [{"requests_per_second": -1}, {"max_concurrent": -1}, {"failures_to_open": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError):
        PolitenessConfig(**setting)
