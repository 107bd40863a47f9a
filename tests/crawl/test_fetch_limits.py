"""Limits of fetching: of time, of requests at a time, and of the memory that waiting pictures take."""

import asyncio
import random
import time
import tracemalloc
from dataclasses import replace

import made_pictures as made
import web_server as web
from fetching import CONFIG, JPEG, PICTURES, fetch, fetch_one
from open_gate import OpenGate

from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.pictures import PictureConfig


def test_no_more_requests_are_open_than_configured(server):
    answer = web.after(0.05, web.content(JPEG))
    urls = [server.answer(f"{number}.jpg", answer) for number in range(30)]
    assert all(result.picture for result in fetch(urls, replace(CONFIG, max_concurrent=3)))
    assert server.most_open_requests <= 3


def test_one_may_stop_in_the_middle_and_the_rest_is_not_fetched(server):
    urls = [server.answer(f"{number}.jpg", web.after(0.05, web.content(JPEG))) for number in range(100)]

    async def first() -> FetchResult:
        results = fetch_in_order(urls, replace(CONFIG, max_concurrent=2), PICTURES, OpenGate())
        result = await anext(results)
        await results.aclose()
        return result

    assert asyncio.run(first()).picture
    assert server.requests.total() < 10


def test_memory_is_bound_by_the_requests_in_flight_not_by_the_number_of_urls(server):
    body = made.encode(made.pixels(900, 900), "BMP")  # 2.4 MB
    url = server.answer("a.bmp", web.content(body))
    config = replace(CONFIG, max_concurrent=1, max_bytes=10_000_000)

    async def peak_bytes(num_urls: int) -> int:
        tracemalloc.start()
        try:
            async for _ in fetch_in_order([url] * num_urls, config, PictureConfig(max_side=32), OpenGate()):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert asyncio.run(peak_bytes(12)) < asyncio.run(peak_bytes(4)) + 2 * len(body)


def test_between_two_tries_it_waits_as_drawn(server, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.9)
    url = server.answer("a.jpg", web.in_turn(web.status(500), web.status(500), web.content(JPEG)))
    start = time.monotonic()
    assert fetch_one(url, replace(CONFIG, backoff_seconds=10, max_backoff_seconds=0.4)).picture
    assert time.monotonic() - start >= 2 * 0.9 * 0.4


def test_a_picture_has_so_much_time_for_all_of_its_tries(server):
    url = server.answer("a.jpg", web.hang)
    start = time.monotonic()
    result = fetch_one(url, replace(CONFIG, max_tries=1000, total_seconds=0.5, max_seconds_per_picture=1.2))
    assert (result.reason, result.retryable) == ("timeout", True)
    assert 2 <= result.tries <= 4
    assert 1.2 <= time.monotonic() - start < 10


def test_a_server_that_says_nothing_is_given_up_before_the_time_of_a_try(server):
    url = server.answer("a.jpg", web.hang)
    start = time.monotonic()
    assert fetch_one(url, replace(CONFIG, max_tries=1, idle_seconds=0.5, total_seconds=60)).reason == "timeout"
    assert time.monotonic() - start < 20


def test_a_slow_chain_of_redirects_has_the_time_of_one_try(server):
    for number in range(5):
        server.answer(f"{number}.jpg", web.after(0.5, web.redirect(f"/{number + 1}.jpg")))
    result = fetch_one(server.base_url + "0.jpg", replace(CONFIG, max_tries=1, total_seconds=1.2))
    assert (result.reason, result.tries) == ("timeout", 1)
    assert server.requests.total() < 5


def test_pictures_behind_a_slow_one_wait_on_disk_and_come_in_order(server, monkeypatch):
    monkeypatch.setattr("xmodal.crawl.fetch._MAX_WAITING_BYTES", 3 * len(JPEG))
    urls = [server.answer("slow.jpg", web.after(1, web.content(JPEG)))]
    pictures = [made.jpeg(seed=number) for number in range(20)]
    urls += [server.answer(f"{number}.jpg", web.content(picture)) for number, picture in enumerate(pictures)]
    results = fetch(urls)
    assert [result.picture.content for result in results] == [JPEG, *pictures]


def test_pictures_behind_a_slow_one_take_no_memory_beyond_the_limit(server, monkeypatch):
    monkeypatch.setattr("xmodal.crawl.fetch._MAX_WAITING_BYTES", 1 << 20)
    noise = random.Random(0)
    picture = made.jpeg() + noise.randbytes(1 << 20)  # what follows its end is kept
    urls = [server.answer("slow.jpg", web.after(6, web.content(JPEG)))]
    urls += [server.answer(f"{number}.jpg", web.content(picture)) for number in range(60)]
    config = replace(CONFIG, max_bytes=1 << 22, max_concurrent=4)
    held = 0

    async def collect() -> None:
        nonlocal held
        results = fetch_in_order(urls, config, PICTURES, OpenGate())
        first = await anext(results)
        held = tracemalloc.get_traced_memory()[0]
        assert first.picture.content == JPEG
        assert [result.picture.content == picture async for result in results] == [True] * 60

    tracemalloc.start()
    try:
        asyncio.run(collect())
    finally:
        tracemalloc.stop()
    assert server.requests.total() == 61
    assert held < 20 << 20


def test_no_permit_of_a_host_is_held_while_nobody_takes_what_is_fetched(server, monkeypatch):
    monkeypatch.setattr("xmodal.crawl.fetch._MAX_WAITING_BYTES", 3 * len(JPEG))
    held = 0

    class Counting(OpenGate):
        async def enter(self, host: str) -> None:
            nonlocal held
            held += 1

        async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
            nonlocal held
            held -= 1
            return True

    urls = [server.answer(f"{number}.jpg", web.after(0.05, web.content(JPEG))) for number in range(40)]

    async def collect() -> None:
        results = fetch_in_order(urls, replace(CONFIG, max_concurrent=2), PICTURES, Counting())
        await anext(results)
        while held:
            await asyncio.sleep(0.05)
        assert server.requests.total() < 40
        assert len([one async for one in results]) == 39

    asyncio.run(asyncio.wait_for(collect(), 60))


def test_what_is_fetched_faster_than_it_is_taken_waits_for_that_and_goes_through_no_disk(server, monkeypatch):
    monkeypatch.setattr("xmodal.crawl.fetch._MAX_WAITING_BYTES", 40 * len(JPEG))
    url = server.answer("a.jpg", web.content(JPEG))

    async def requests_of_the_slow() -> int:
        results = fetch_in_order([url] * 500, replace(CONFIG, max_concurrent=4), PICTURES, OpenGate())
        assert (await anext(results)).picture
        await asyncio.sleep(2)
        num_requests = server.requests.total()
        assert [result.picture.content async for result in results] == [JPEG] * 499
        return num_requests

    # Half of the memory, and what was under way.
    assert asyncio.run(requests_of_the_slow()) <= 20 + 2 * 4
    assert server.requests.total() == 500
