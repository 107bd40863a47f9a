"""How a fetch passes the gates of its hosts, and what it tells them."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import made_pictures as made
import pytest
import web_server as web

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.gate import LocalGate
from xmodal.crawl.pictures import PictureConfig
from xmodal.crawl.politeness import HostDownError, PolitenessConfig

CONFIG = FetchConfig(allow_networks=["127.0.0.0/8"], max_tries=3, backoff_seconds=0.01, total_seconds=10)
JPEG = made.jpeg()


class NotingGate:
    """Notes who comes and goes; counts failures as `counts` says, one after another, and then all."""

    def __init__(self, counts: Iterable[bool] = ()) -> None:
        self.notes: list[tuple[object, ...]] = []
        self._counts = iter(counts)

    async def enter(self, host: str) -> None:
        self.notes.append(("enter", host))

    async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
        self.notes.append(("leave", host, answered, retry_after))
        return next(self._counts, True)

    @property
    def told(self) -> list[tuple[object, ...]]:
        """What was said by those who left: answered, retry_after."""
        return [note[2:] for note in self.notes if note[0] == "leave"]


def fetch(urls: Sequence[str], gate: NotingGate, config: FetchConfig = CONFIG) -> list[FetchResult]:
    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order(urls, config, PictureConfig(), gate)]

    return asyncio.run(collect())


def test_every_request_passes_the_gate_of_its_own_host_redirects_too(server):
    server.answer("b.jpg", web.content(JPEG))
    url = server.answer("a.jpg", web.redirect(f"http://localhost:{server.port}/b.jpg"))
    gate = NotingGate()
    assert fetch([url], gate)[0].picture
    first, second = "127.0.0.1", "localhost"
    assert gate.notes == [
        ("enter", first), ("leave", first, True, None), ("enter", second), ("leave", second, True, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (web.content(JPEG), [(True, None)]),
        (web.content(made.HTML), [(True, None)]),
        (web.status(404), [(True, None)]),
        (web.status(500), [(True, None)]),
        (web.status(429), [(True, None)]),
        (web.status(429, **{"Retry-After": "7"}), [(True, 7)]),
        (web.status(503, **{"Retry-After": "7"}), [(True, 7)]),
        (web.status(500, **{"Retry-After": "7"}), [(True, None)]),
        (web.redirect("file:///etc/passwd"), [(True, None)]),
        (web.declared(len(JPEG), JPEG[:-100]), [(True, None)]),
        (web.close_at_once, [(False, None)]),
        (web.hang, [(False, None)]),
        (web.trickle(JPEG), [(True, None)]),
    ],
)
def test_the_gate_is_told_whether_the_host_answered_and_for_how_long_it_wants_a_pause(server, answer, told):
    gate = NotingGate()
    fetch([server.answer("a.jpg", answer)], gate, replace(CONFIG, max_tries=1, total_seconds=1))
    assert gate.told == told


@pytest.mark.parametrize("answer", [web.after(0.5, web.close_at_once), web.hang], ids=["closed", "silent"])
def test_one_picture_without_an_answer_says_nothing_of_a_host_that_answers_others_meanwhile(server, answer):
    urls = [server.answer("bad.jpg", answer), server.answer("good.jpg", web.content(JPEG))]
    gate = NotingGate()
    fetch(urls, gate, replace(CONFIG, max_tries=1, idle_seconds=1))
    assert sorted(gate.told, key=str) == [(None, None), (True, None)]


@pytest.mark.parametrize("answer", [web.close_at_once, web.hang], ids=["closed", "silent"])
def test_a_picture_without_an_answer_has_no_more_tries_where_its_host_as_a_whole_is_silent(server, answer):
    url = server.answer("a.jpg", answer)
    gate = NotingGate([False] * 10)
    (result,) = fetch([url], gate, replace(CONFIG, idle_seconds=0.5))
    assert result.tries == server.requests.total() == CONFIG.max_tries
    # Once it speaks for its host; then it may be the cause itself.
    assert [answered for answered, _ in gate.told] == [False, None, None]


def test_a_host_that_takes_connections_and_says_nothing_is_asked_now_and_then_and_given_up(server):
    politeness = PolitenessConfig(requests_per_second=0, max_concurrent=8, patience_seconds=3)
    url = server.answer("a.jpg", web.hang)

    async def collect() -> list[FetchResult]:
        config = replace(CONFIG, idle_seconds=0.5)
        return [one async for one in fetch_in_order([url] * 200, config, PictureConfig(), LocalGate(politeness))]

    reasons = Counter(result.reason for result in asyncio.run(collect()))
    assert set(reasons) <= {"timeout", "host_down"}
    assert reasons["host_down"] > 180
    # Until it shows, and then one at a time.
    assert server.requests.total() < 8 * 2 + 2 * 3


def test_a_pause_until_a_date_is_told_in_seconds(server):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    gate = NotingGate()
    fetch([server.answer("a.jpg", web.status(503, **{"Retry-After": date}))], gate, replace(CONFIG, max_tries=1))
    ((answered, seconds),) = gate.told
    assert answered
    assert 0 < seconds <= 100


def test_a_host_that_refuses_connections_has_not_answered():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        gate = NotingGate()
        fetch([f"http://127.0.0.1:{bound.getsockname()[1]}/a.jpg"], gate)
    assert gate.told == [(False, None)] * 3


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1/a.jpg", "http://10.0.0.1/a.jpg"])
def test_what_is_not_asked_for_passes_no_gate(url):
    gate = NotingGate()
    fetch([url], gate)
    assert not gate.notes


def test_failures_of_the_host_as_a_whole_are_no_tries_of_the_picture(server):
    url = server.answer("a.jpg", web.in_turn(*[web.status(500)] * 5, web.content(JPEG)))
    (result,) = fetch([url], NotingGate([False] * 4), CONFIG)
    assert result.picture
    assert result.tries == 2
    assert server.requests.total() == 6


def test_they_end_with_the_time_of_a_picture(server):
    url = server.answer("a.jpg", web.status(500))
    (result,) = fetch([url], NotingGate([False] * 10_000), replace(CONFIG, max_seconds_per_picture=0.5))
    # The last one may have been cut off.
    assert (result.reason, result.retryable, result.tries) in (("http_error", True, 0), ("timeout", True, 0))
    assert server.requests.total() > CONFIG.max_tries


def test_waiting_for_the_hosts_turn_is_not_the_pictures_time(server):
    class SlowGate(NotingGate):
        async def enter(self, host: str) -> None:
            await asyncio.sleep(1)

    url = server.answer("a.jpg", web.in_turn(web.status(500), web.content(JPEG)))
    config = replace(CONFIG, max_seconds_per_picture=0.9, total_seconds=0.9)
    start = time.monotonic()
    assert fetch([url], SlowGate(), config)[0].picture
    assert time.monotonic() - start >= 2


def test_a_host_that_is_given_up_is_told_and_not_asked(server):
    class ClosedGate(NotingGate):
        async def enter(self, host: str) -> None:
            raise HostDownError

    gate = ClosedGate()
    url = server.answer("a.jpg", web.content(JPEG))
    assert fetch([url], gate) == [FetchResult(url=url, reason="host_down", retryable=True)]
    assert not gate.notes
    assert not server.requests


def test_pictures_that_wait_for_one_host_keep_none_of_another_waiting(server):
    good = server.answer("a.jpg", web.content(JPEG))
    held = [f"http://localhost:{server.port}/a.jpg"] * 10

    class HoldingGate(NotingGate):
        def __init__(self) -> None:
            super().__init__()
            self._others = asyncio.Event()
            self._num_others = 0

        async def enter(self, host: str) -> None:
            if host == "localhost":
                await self._others.wait()

        async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
            self._num_others += host != "localhost"
            if self._num_others == 5:
                self._others.set()
            return True

    assert all(
        result.picture for result in fetch([*held, *[good] * 5], HoldingGate(), replace(CONFIG, max_concurrent=1))
    )


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_who_stops_early_leaves_every_gate_and_no_task_behind(server, num_taken):
    quick = [server.answer(f"{number}.jpg", web.content(JPEG)) for number in range(4)]
    slow = [server.answer(f"slow-{number}.jpg", web.trickle(JPEG * 100)) for number in range(8)]
    gate = NotingGate()

    async def stop_early() -> None:
        results = fetch_in_order([*quick, *slow], replace(CONFIG, max_concurrent=6), PictureConfig(), gate)
        for _ in range(num_taken):
            assert (await anext(results)).picture
        if num_taken == 0:
            # Cancelled while it waits, as a unit is that Ray ends.
            waiting = asyncio.create_task(anext(fetch_in_order(slow, CONFIG, PictureConfig(), gate)))
            await asyncio.sleep(0.5)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await results.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(stop_early())
    counts = Counter(note[:2] for note in gate.notes)
    assert counts["enter", "127.0.0.1"] == counts["leave", "127.0.0.1"] > 0
    end = time.monotonic() + 20
    while server.open_requests and time.monotonic() < end:
        time.sleep(0.1)
    assert not server.open_requests, "a connection is still open"
