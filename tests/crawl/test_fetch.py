import asyncio
import random
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace

import made_pictures as made
import pytest
import web_server as web
from open_gate import OpenGate

import xmodal
from shards.errors import ConfigError
from xmodal.crawl import fetch as fetch_module
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.pictures import PictureConfig

CONFIG = FetchConfig(
    max_tries=3,
    backoff_seconds=0.01,
    connect_seconds=5,
    total_seconds=10,
    max_bytes=200_000,
    allow_networks=["127.0.0.0/8"],
)
PICTURES = PictureConfig()
JPEG = made.jpeg()


def fetch(urls: list[str], config: FetchConfig = CONFIG) -> list[FetchResult]:
    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order(urls, config, PICTURES, OpenGate())]

    return asyncio.run(collect())


def fetch_one(url: str, config: FetchConfig = CONFIG) -> FetchResult:
    (result,) = fetch([url], config)
    assert result.url == url
    return result


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port that nothing listens on and nothing else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_picture_is_fetched_with_one_request_and_its_bytes_kept(server):
    result = fetch_one(server.answer("a.jpg", web.content(JPEG)))
    assert result.picture
    assert result.picture.content == JPEG
    assert (result.http_status, result.tries, result.reason) == (200, 1, None)
    assert server.requests == {"/a.jpg": 1}


def test_the_content_decides_not_the_header_or_the_name(server):
    result = fetch_one(server.answer("a.html", web.content(made.png(), "text/html")))
    assert result.picture
    assert result.picture.extension == "png"


@pytest.mark.parametrize(
    ("answer", "reason", "http_status", "retryable", "tries"),
    [
        (web.status(404), "http_error", 404, False, 1),
        (web.status(403), "http_error", 403, False, 1),
        (web.status(410), "http_error", 410, False, 1),
        (web.content(b"", code=204), "http_error", 204, False, 1),
        (web.status(500), "http_error", 500, True, 3),
        (web.status(503), "http_error", 503, True, 3),
        (web.status(429), "http_error", 429, True, 3),
        (web.in_turn(web.status(500), web.status(404)), "http_error", 404, False, 2),
        (web.content(made.GARBAGE), "not_an_image", 200, False, 1),
        (web.content(made.HTML, "text/html"), "not_an_image", 200, False, 1),
        (web.content(made.SVG, "image/svg+xml"), "not_an_image", 200, False, 1),
        (web.content(JPEG[:-300]), "undecodable", 200, False, 1),
        (web.content(b""), "empty", 200, False, 1),
        (web.content(made.png(1, 1)), "too_small", 200, False, 1),
        (web.content(made.png_that_claims(100_000, 100_000)), "too_many_pixels", 200, False, 1),
        (web.close_at_once, "cut_off", None, True, 3),
        (web.declared(len(JPEG), JPEG[:-100]), "cut_off", None, True, 3),
        (web.declared(len(JPEG), b""), "cut_off", None, True, 3),
        (web.not_http, "bad_answer", None, False, 1),
        (web.content(bytes(CONFIG.max_bytes + 1)), "too_large", 200, False, 1),
        (web.declared(10**12, JPEG), "too_large", 200, False, 1),
        (web.chunked(bytes(CONFIG.max_bytes + 1)), "too_large", 200, False, 1),
        (web.gzipped(bytes(CONFIG.max_bytes + 1)), "too_large", 200, False, 1),
        (web.gzipped(bytes(100_000_000)), "too_large", 200, False, 1),
        (web.redirect("/a.jpg"), "too_many_redirects", None, False, 1),
        (web.redirect("file:///etc/passwd"), "bad_url", None, False, 1),
        (web.redirect("ftp://127.0.0.1/a.jpg"), "bad_url", None, False, 1),
        (web.redirect("http://[broken/a.jpg"), "bad_url", None, False, 1),
        (web.redirect("http:///a.jpg"), "bad_url", None, False, 1),
        (web.redirect("/none.jpg"), "http_error", 404, False, 1),
    ],
)
def test_an_answer_without_a_picture_has_its_reason_and_costs_no_neighbour(
    server, answer, reason, http_status, retryable, tries
):
    urls = [server.answer("before.jpg", web.content(JPEG)), server.answer("a.jpg", answer)]
    urls.append(server.answer("after.jpg", web.content(made.png())))
    before, bad, after = fetch(urls)
    assert before.picture
    assert after.picture
    assert bad == FetchResult(url=urls[1], reason=reason, http_status=http_status, retryable=retryable, tries=tries)


@pytest.mark.parametrize(
    "answers",
    [
        [web.status(429), web.content(JPEG)],
        [web.status(500), web.status(503), web.content(JPEG)],
        [web.declared(len(JPEG), JPEG[:50]), web.content(JPEG)],
    ],
)
def test_a_failure_that_passes_is_tried_again_until_the_picture_is_there(server, answers):
    result = fetch_one(server.answer("a.jpg", web.in_turn(*answers)))
    assert result.picture
    assert result.tries == len(answers)
    assert server.requests["/a.jpg"] == len(answers)


def test_a_connection_that_is_closed_without_an_answer_is_opened_again(server):
    result = fetch_one(server.answer("a.jpg", web.in_turn(web.close_at_once, web.close_at_once, web.content(JPEG))))
    assert result.picture
    assert result.tries == server.requests["/a.jpg"] == 3


def test_a_picture_that_others_wait_behind_is_asked_for_again_before_them(server):
    asked = []

    def noting(name, answer):
        def note(handler) -> None:
            asked.append(name)
            answer(handler)

        return server.answer(name, note)

    first = noting("first.jpg", web.in_turn(web.status(503), web.content(JPEG)))
    others = [noting(f"{number}.jpg", web.content(JPEG)) for number in range(30)]
    assert all(
        result.picture for result in fetch([first, *others], replace(CONFIG, max_concurrent=1, backoff_seconds=0))
    )
    assert asked.count("first.jpg") == 2
    # One or two have taken the only slot meanwhile.
    assert asked[1:5].count("first.jpg") == 1


@pytest.mark.parametrize("answer", [web.status(500), web.close_at_once, web.declared(9, b"")])
def test_every_try_is_one_request(server, answer):
    assert fetch_one(server.answer("a.jpg", answer), replace(CONFIG, max_tries=4)).tries == 4
    # aiohttp by itself would ask once more where a connection was closed: it may have been an old one.
    assert server.requests["/a.jpg"] == 4


def test_a_connection_that_was_kept_and_is_closed_costs_a_try_and_no_picture(server):
    connections = []

    def answer_once(handler) -> None:
        if handler.connection in connections:
            handler.close_connection = True
        else:
            connections.append(handler.connection)
            web.content(JPEG)(handler)

    url = server.answer("a.jpg", answer_once)
    results = fetch([url] * 5, replace(CONFIG, max_concurrent=1, max_tries=20))
    assert all(result.picture for result in results)
    # Each but the first request of a connection fails.
    assert sum(result.tries for result in results) == server.requests.total() == 9


def test_connections_are_used_again(server):
    connections = set()

    def note(handler) -> None:
        connections.add(handler.client_address)
        web.content(JPEG)(handler)

    assert all(
        result.picture for result in fetch([server.answer("a.jpg", note)] * 50, replace(CONFIG, max_concurrent=4))
    )
    assert len(connections) == 4


def test_redirects_are_followed_to_the_picture(server):
    server.answer("c.jpg", web.content(JPEG))
    server.answer("b.jpg", web.redirect("/c.jpg", 301))
    result = fetch_one(server.answer("a.jpg", web.redirect(server.base_url + "b.jpg", 307)))
    assert result.picture
    assert result.url.endswith("/a.jpg")


@pytest.mark.parametrize("answer", [web.hang, web.trickle(JPEG)], ids=["silent", "a byte now and then"])
def test_a_server_that_hangs_costs_the_configured_time_and_no_neighbour(server, answer):
    urls = [server.answer("slow.jpg", answer), server.answer("a.jpg", web.content(JPEG))]
    start = time.monotonic()
    slow, good = fetch(urls, replace(CONFIG, total_seconds=1, max_tries=2))
    assert time.monotonic() - start < 6
    assert slow == FetchResult(url=urls[0], reason="timeout", retryable=True, tries=2)
    assert good.picture


def test_a_refused_connection_is_tried_again_and_told(refusing_port):
    url = f"http://127.0.0.1:{refusing_port}/a.jpg"
    assert fetch_one(url) == FetchResult(url=url, reason="connection_error", retryable=True, tries=3)


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "a.jpg",
        "/etc/passwd",
        "ftp://127.0.0.1/a.jpg",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a.jpg",
        "http:a.jpg",
        "http://:80/a.jpg",
        "http://127.0.0.1:99999/a.jpg",
        "http://127.0.0.1:0/a.jpg",
        "http://127.0.0.1:port/a.jpg",
        "http://[::1/a.jpg",
        "http://[::1]suffix/a.jpg",
        "http://host name/a.jpg",
        "http://host\x00/a.jpg",
        "http://\u2100/a.jpg",
        "http://" + "a" * 300 + "/a.jpg",
        "http://a..b/a.jpg",
        "http://%zz/a.jpg",
        "\\\\host\\a.jpg",
    ],
    ids=lambda url: url[:30],
)
def test_a_bad_url_is_told_so_without_any_request(url):
    result = fetch_one(url)
    assert (result.reason, result.http_status, result.retryable) == ("bad_url", None, False)


@pytest.mark.parametrize(
    ("path", "asked_for"),
    [
        ("a picture.jpg", "/a%20picture.jpg"),
        ("a%20picture.jpg", "/a%20picture.jpg"),
        ("bär.jpg", "/b%C3%A4r.jpg"),
        ("a.jpg?size=l&b=%2F", "/a.jpg?size=l&b=/"),
        ("a.jpg#top", "/a.jpg"),
        ("a\r\nX-Evil: 1.jpg", None),
    ],
)
def test_a_path_with_odd_characters_is_asked_for_as_browsers_do(server, path, asked_for):
    if asked_for:
        server.answer(asked_for[1:], web.content(JPEG))
        assert fetch_one(server.base_url + path).picture
    else:
        assert fetch_one(server.base_url + path).picture is None


def test_results_come_in_the_order_of_the_urls(server):
    urls = [
        server.answer(f"{number}.jpg", web.after(0.2 if number % 5 == 0 else 0, web.content(made.jpeg(seed=number))))
        for number in range(20)
    ]
    results = fetch(urls)
    assert [result.url for result in results] == urls
    assert [result.picture.content for result in results] == [made.jpeg(seed=number) for number in range(20)]


def test_no_more_requests_are_open_than_configured(server):
    answer = web.after(0.05, web.content(JPEG))
    urls = [server.answer(f"{number}.jpg", answer) for number in range(30)]
    assert all(result.picture for result in fetch(urls, replace(CONFIG, max_concurrent=3)))
    assert server.most_open_requests <= 3


def test_one_url_may_be_fetched_many_times(server):
    url = server.answer("a.jpg", web.content(JPEG))
    assert all(result.picture for result in fetch([url] * 10))


def test_no_urls_are_no_results():
    assert fetch([]) == []


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


def test_the_user_agent_says_who_asks(server):
    agents = []

    def note(handler):
        agents.append(handler.headers["User-Agent"])
        web.content(JPEG)(handler)

    fetch_one(server.answer("a.jpg", note), replace(CONFIG, contact="https://example.org"))
    assert agents == [f"xmodal/{xmodal.__version__} (+https://example.org)"]


def test_cookies_are_not_kept(server):
    cookies = []

    def note(handler):
        cookies.append(handler.headers["Cookie"])
        web.status(500, **{"Set-Cookie": "who=you"})(handler)

    fetch_one(server.answer("a.jpg", note))
    assert cookies == [None, None, None]


@pytest.mark.parametrize(
    "changes",
    [{"max_concurrent": 0}, {"max_tries": 0}, {"max_bytes": 0}, {"total_seconds": 0.0}, {"backoff_seconds": -1.0}],
    ids=str,
)
def test_a_limit_out_of_range_is_told_by_its_name(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}: {value}"):
        FetchConfig(**changes)


@pytest.mark.parametrize(("max_redirects", "followed"), [(0, False), (1, False), (2, True), (3, True)])
def test_as_many_redirects_are_followed_as_the_config_says(server, max_redirects, followed):
    server.answer("third.jpg", web.content(made.jpeg()))
    server.answer("second.jpg", web.redirect("/third.jpg"))
    url = server.answer("first.jpg", web.redirect("/second.jpg"))
    result = fetch_one(url, replace(CONFIG, max_redirects=max_redirects))
    assert (result.picture is not None) == followed


@pytest.mark.parametrize(
    ("headers", "is_fetched"),
    [
        (["noai"], False),
        (["noindex, NoImageAI"], False),
        (["noindex", "xmodal: noai"], False),
        (["otherbot: noai"], True),
        (["noindex"], True),
    ],
)
def test_who_opts_out_is_left_out_before_the_body_is_read(server, headers, is_fetched):
    reached_end = []

    def send(handler):
        handler.send_response(200)
        for header in headers:
            handler.send_header("X-Robots-Tag", header)
        # More than any buffer on the way holds.
        handler.send_header("Content-Length", str(30_000_000))
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(bytes(1_000_000))
        reached_end.append(True)

    url = server.answer("a.jpg", send)
    config = replace(CONFIG, max_bytes=30_000_000)
    expected = FetchResult(url=url, reason="not_an_image" if is_fetched else "opted_out", http_status=200, tries=1)
    assert fetch_one(url, config) == expected
    assert bool(reached_end) == is_fetched
    assert fetch_one(url, replace(config, obey_opt_out=False)).reason == "not_an_image"


def test_who_opts_out_where_it_redirects_is_left_out_too(server):
    server.answer("b.jpg", web.content(JPEG))

    def send(handler):
        handler.send_head(302, {"Location": "/b.jpg", "X-Robots-Tag": "noai", "Content-Length": "0"})

    assert fetch_one(server.answer("a.jpg", send)).reason == "opted_out"
    assert server.requests == {"/a.jpg": 1}


@pytest.mark.parametrize(
    "answer",
    [
        web.gzipped(JPEG),
        web.encoded(zlib.compress(JPEG), "deflate"),
        web.encoded(zlib.compress(JPEG, wbits=-15), "deflate"),
        web.encoded(JPEG, "identity"),
        web.encoded(JPEG, "aws-chunked"),
        web.encoded(JPEG, "gzip"),
    ],
    ids=["gzip", "zlib", "deflate", "identity", "one that S3 leaves there", "gzip that is none"],
)
def test_a_packed_body_is_unpacked_and_the_content_decides_whether_it_was_one(server, answer):
    result = fetch_one(server.answer("a.jpg", answer))
    assert result.picture
    assert result.picture.content == JPEG


def test_no_packed_body_is_asked_for(server):
    asked = []

    def note(handler):
        asked.append(handler.headers["Accept-Encoding"])
        web.content(JPEG)(handler)

    fetch_one(server.answer("a.jpg", note))
    assert asked == ["identity"]


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


def test_a_name_with_the_dot_that_may_end_it_is_the_same_host_to_the_gate(server):
    hosts = []

    class Listing(OpenGate):
        async def enter(self, host: str) -> None:
            hosts.append(host)

    async def collect() -> None:
        url = server.answer("a.jpg", web.content(JPEG)).replace("127.0.0.1", "localhost.")
        _ = [one async for one in fetch_in_order([url], replace(CONFIG, max_tries=1), PICTURES, Listing())]

    asyncio.run(collect())
    assert hosts == ["localhost"]


def test_by_the_header_alone_a_picture_is_kept_unread(server):
    cut_off = made.jpeg(400, 300)[:-300]
    config = PictureConfig(check="header", hashes=False)

    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order(urls, CONFIG, config, OpenGate())]

    urls = [server.answer("a.jpg", web.content(cut_off)), server.answer("b.jpg", web.content(made.HTML))]
    kept, refused = asyncio.run(collect())
    assert (kept.picture.content, kept.picture.width, kept.picture.sha256) == (cut_off, 400, "")
    assert refused.reason == "not_an_image"


@pytest.mark.parametrize(
    "contact", ["https://example.org/crawl", "http://example.org:8080/~me/?a=b&c=d", "crawl@example.org", "a+b@c-d.org"]
)
def test_a_contact_is_a_web_page_or_a_mail_address(contact):
    assert FetchConfig(contact=contact).user_agent == f"xmodal/{xmodal.__version__} (+{contact})"


@pytest.mark.parametrize(
    "contact",
    [
        *("me", "https://", "ftp://example.org", "a b@example.org", "https://example.org/ and more", "a@b@c"),
        *("https://example.org\r\nX-Evil: 1", "a@b\n", "https://example.org/)", "https://example.org/(", "a@b\\"),
        *("https://ex\u00e4mple.org", "a@b\x00", "a@b\x7f"),
    ],
)
def test_a_contact_that_would_break_the_header_is_refused(contact):
    with pytest.raises(ConfigError, match="contact: "):
        FetchConfig(contact=contact)


def test_without_a_contact_the_user_agent_is_the_name_alone():
    assert FetchConfig().user_agent == f"xmodal/{xmodal.__version__}"


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


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "out_of_memory"), (ZeroDivisionError(), "internal_error")]
)
def test_an_error_that_nothing_foresees_costs_its_own_picture_alone(server, monkeypatch, caplog, error, reason):
    bad, good = (
        server.answer("bad.jpg", web.content(JPEG[:-2] + b"\0" * 9)),
        server.answer("good.jpg", web.content(JPEG)),
    )
    check = fetch_module.check_picture

    def failing_check(content, config):
        if content != JPEG:
            raise error
        return check(content, config)

    monkeypatch.setattr(fetch_module, "check_picture", failing_check)
    failed, fetched = fetch([bad, good])
    assert (failed.reason, failed.retryable, failed.tries) == (reason, True, CONFIG.max_tries)
    assert fetched.picture
    assert ("please report it" in caplog.text) == (reason == "internal_error")


def test_an_answer_that_trips_the_client_costs_its_own_picture_alone(server, monkeypatch):
    url = server.answer("a.jpg", web.content(JPEG))

    async def failing_request(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(fetch_module, "request", failing_request)
    gate = OpenGate()

    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order([url], CONFIG, PICTURES, gate)]

    (result,) = asyncio.run(collect())
    assert (result.reason, result.retryable) == ("internal_error", True)
