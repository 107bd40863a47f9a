"""How fetching behaves towards hosts: who it says it is, what it keeps of them, and what it leaves out if they ask."""

import asyncio
from dataclasses import replace

import pytest
import web_server as web
from fetching import CONFIG, JPEG, PICTURES, fetch_one
from open_gate import OpenGate

import xmodal
from shards.errors import ConfigError
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order


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
