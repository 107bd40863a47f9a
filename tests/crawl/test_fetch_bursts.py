"""What a host sees whose limits are kept by a real gate, while others that do not answer take all slots of the task."""

import asyncio
import time

import made_pictures as made
import pytest
import web_server as web

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.gate import GateKeeper, LocalGate, SharedGate
from xmodal.crawl.pictures import PictureConfig
from xmodal.crawl.politeness import HostGate, PolitenessConfig

RATE, SLOTS, NUM_PICTURES = 20.0, 16, 60
CONFIG = FetchConfig(allow_networks=["127.0.0.0/8"], max_concurrent=SLOTS, idle_seconds=1.5, max_tries=1)
POLITENESS = PolitenessConfig(requests_per_second=RATE, max_concurrent=SLOTS)
# Each has its own part of the slots by the time that the pictures of the other host have their permits.
NUM_SILENT_HOSTS = 8
JPEG = made.jpeg()


class Noting:
    """Answers with a picture, and notes when it was asked."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, handler) -> None:
        self.times.append(time.monotonic())
        web.content(JPEG)(handler)


@pytest.fixture
def any_server():
    """Answers at all addresses of this machine; each is another host."""
    with web.serving("0.0.0.0") as running:
        yield running


def fetch(urls: list[str], config: FetchConfig, *, shared: bool) -> list[FetchResult]:
    async def collect() -> list[FetchResult]:
        gate: HostGate
        if shared:
            async with SharedGate(GateKeeper(POLITENESS)) as gate:
                return [one async for one in fetch_in_order(urls, config, PictureConfig(), gate)]
        gate = LocalGate(POLITENESS)
        return [one async for one in fetch_in_order(urls, config, PictureConfig(), gate)]

    return asyncio.run(collect())


def silent_urls(server: web.WebServer) -> list[str]:
    server.answer("silent.jpg", web.hang)
    hosts = [f"127.0.1.{number}" for number in range(1, NUM_SILENT_HOSTS + 1)]
    return [f"http://{host}:{server.port}/silent.jpg" for _ in range(2 * SLOTS // NUM_SILENT_HOSTS) for host in hosts]


def most_in_a_second(times: list[float]) -> int:
    return max(sum(start <= one < start + 1 for one in times) for start in times)


@pytest.mark.parametrize("shared", [True, False], ids=["shared gate", "gate of the task alone"])
def test_no_second_holds_more_than_allowed_where_other_hosts_hold_all_slots(any_server, shared):
    noting = Noting()
    any_server.answer("a.jpg", noting)
    urls = silent_urls(any_server) + [f"http://127.0.0.1:{any_server.port}/a.jpg"] * NUM_PICTURES
    results = fetch(urls, CONFIG, shared=shared)
    assert sum(result.picture is not None for result in results) == NUM_PICTURES == len(noting.times)
    assert most_in_a_second(noting.times) <= RATE + 2


@pytest.mark.parametrize("shared", [True, False], ids=["shared gate", "gate of the task alone"])
def test_a_pause_is_kept_by_those_who_had_a_permit_and_waited_for_a_slot(any_server, shared):
    noting, asked = Noting(), []

    def ask_for_a_pause(handler) -> None:
        time.sleep(0.7)  # the others' permits come meanwhile
        asked.append(time.monotonic())
        web.status(429, **{"Retry-After": "3"})(handler)

    any_server.answer("pause.jpg", ask_for_a_pause)
    any_server.answer("a.jpg", noting)
    first, *others = [f"http://127.0.0.1:{any_server.port}/{name}.jpg" for name in ["pause", *["a"] * NUM_PICTURES]]
    results = fetch([first, *silent_urls(any_server), *others], CONFIG, shared=shared)
    assert sum(result.picture is not None for result in results) == NUM_PICTURES == len(noting.times)
    assert not [one for one in noting.times if asked[0] + 0.3 < one < asked[0] + 3]


def test_a_slot_is_nobodys_while_a_host_lets_nobody_through(any_server):
    """Pictures of a slow host, few of them and first, hold no slot of those that another one would answer."""
    politeness = PolitenessConfig(requests_per_second=1.0, max_concurrent=SLOTS)
    any_server.answer("a.jpg", web.content(JPEG))
    slow = [f"http://127.0.1.{number}:{any_server.port}/a.jpg" for number in (1, 2) for _ in range(4)]
    others = [f"http://127.0.2.{number}:{any_server.port}/a.jpg" for number in range(100)]

    async def seconds() -> tuple[float, float]:
        ended: dict[str, float] = {}
        config = FetchConfig(allow_networks=["127.0.0.0/8"], max_concurrent=2)

        class Timing(LocalGate):
            async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
                if answered:
                    ended[host] = time.monotonic()
                return await super().leave(host, answered=answered, retry_after=retry_after)

        async for result in fetch_in_order([*slow, *others], config, PictureConfig(), Timing(politeness)):
            assert result.picture
        return max(ended[f"127.0.2.{number}"] for number in range(100)), min(ended["127.0.1.1"], ended["127.0.1.2"])

    last_of_the_others, last_of_the_slow = asyncio.run(seconds())
    assert last_of_the_others < last_of_the_slow
