import asyncio
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

import made_pictures as made
import pytest
import web_server as web
from fetching import CONFIG, JPEG, PICTURES, fetch, fetch_one
from open_gate import OpenGate

from shards.errors import ConfigError
from xmodal.crawl import fetch as fetch_module
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.pictures import PictureConfig


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


def test_one_url_may_be_fetched_many_times(server):
    url = server.answer("a.jpg", web.content(JPEG))
    assert all(result.picture for result in fetch([url] * 10))


def test_no_urls_are_no_results():
    assert fetch([]) == []


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
