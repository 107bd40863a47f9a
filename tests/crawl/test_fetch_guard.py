"""What posts and redirects may lead to, on real sockets. 127.0.0.2 plays the internet, 127.0.0.1 the inside."""

import asyncio
import datetime
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import aiohttp
import made_pictures as made
import pytest
import web_server as web
from aiohttp.resolver import ThreadedResolver
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from open_gate import OpenGate

from xmodal.crawl import request
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.guard import ForbiddenAddressError, GuardedResolver
from xmodal.crawl.pictures import PictureConfig

CONFIG = FetchConfig(allow_networks=["127.0.0.2/32"], max_tries=2, backoff_seconds=0.01, total_seconds=10)


def fetch_one(url: str, config: FetchConfig = CONFIG) -> FetchResult:
    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order([url], config, PictureConfig(), OpenGate())]

    (result,) = asyncio.run(collect())
    return result


@pytest.fixture
def outside() -> Iterator[web.WebServer]:
    with web.serving("127.0.0.2") as running:
        yield running


@pytest.fixture
def inside(server) -> web.WebServer:
    """Has a picture, for whoever gets in."""
    server.answer("a.jpg", web.content(made.jpeg()))
    return server


FORBIDDEN = [
    "http://127.0.0.1:PORT/a.jpg",
    "https://127.0.0.1:PORT/a.jpg",
    "http://user:password@127.0.0.1:PORT/a.jpg",
    "http://localhost:PORT/a.jpg",
    "http://LOCALHOST:PORT/a.jpg",
    "http://2130706433:PORT/a.jpg",
    "http://2130706433/",
    "http://0x7f.1:PORT/a.jpg",
    "http://0x7f.1/",
    "http://0177.0.0.1:PORT/a.jpg",
    "http://127.1:PORT/a.jpg",
    "http://0:PORT/a.jpg",
    "http://127\u30020\u30020\u30021:PORT/a.jpg",
    "http://[::1]:PORT/a.jpg",
    "http://[::ffff:127.0.0.1]:PORT/a.jpg",
    "http://[::ffff:7f00:1]:PORT/a.jpg",
    "http://[::127.0.0.1]:PORT/a.jpg",
    "http://[64:ff9b::7f00:1]:PORT/a.jpg",
    "http://[2002:7f00:1::]:PORT/a.jpg",
    "http://[fe80::1]:PORT/a.jpg",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[::ffff:10.0.0.1]/",
    "http://10.0.0.1/",
    "http://100.100.100.200/",
    "http://224.0.0.1/",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_nothing_inside_is_asked_for(inside, url):
    url = url.replace("PORT", str(inside.port))
    # A name has to be looked up to be known.
    tries = int("localhost" in url.lower())
    assert fetch_one(url) == FetchResult(url=url, reason="forbidden_address", tries=tries)
    assert not inside.requests


@pytest.mark.parametrize("url", FORBIDDEN)
def test_no_redirect_leads_inside(outside, inside, url):
    answer = web.redirect(url.replace("PORT", str(inside.port)).encode().decode("latin-1"))
    result = fetch_one(outside.answer("a.jpg", answer))
    assert (result.reason, result.retryable, result.tries) == ("forbidden_address", False, 1)
    assert outside.requests.total() == 1
    assert not inside.requests


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.2/", "gopher://127.0.0.1/", "http://[fe80::1%25lo]/"]
)
def test_no_redirect_leads_to_another_protocol(outside, url):
    result = fetch_one(outside.answer("a.jpg", web.redirect(url)))
    assert (result.reason, result.retryable, result.tries) == ("bad_url", False, 1)


def name_means(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """The system's resolver answers `any.test` by the first list of addresses, then by the second …"""
    remaining = list(answers)
    real = socket.getaddrinfo

    def look_up(host, port, *arguments, **options):
        if host != "any.test":
            return real(host, port, *arguments, **options)
        addresses = remaining.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_that_means_the_outside_first_and_the_inside_later_leads_nowhere(outside, inside, monkeypatch):
    name_means(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    # Another port is another look-up.
    outside.answer("a.jpg", web.redirect(f"http://any.test:{inside.port}/a.jpg"))
    result = fetch_one(f"http://any.test:{outside.port}/a.jpg")
    assert (result.reason, result.retryable) == ("forbidden_address", False)
    assert outside.requests == {"/a.jpg": 1}
    assert not inside.requests


def test_of_a_name_that_means_both_only_the_outside_is_tried(inside, monkeypatch):
    name_means(monkeypatch, *[["127.0.0.2", "127.0.0.1"]] * 2)
    # Nobody listens there on 127.0.0.2.
    assert fetch_one(f"http://any.test:{inside.port}/a.jpg").reason == "connection_error"
    assert not inside.requests


def test_a_name_that_also_means_the_inside_is_still_fetched_from_outside(outside, monkeypatch):
    name_means(monkeypatch, ["127.0.0.1", "127.0.0.2"])
    outside.answer("a.jpg", web.content(made.jpeg()))
    assert fetch_one(f"http://any.test:{outside.port}/a.jpg").picture


def test_the_address_that_is_connected_to_is_judged_whatever_was_looked_up(inside, monkeypatch):
    name_means(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(GuardedResolver, "resolve", ThreadedResolver.resolve)
    assert fetch_one(f"http://any.test:{inside.port}/a.jpg").reason == "forbidden_address"
    assert not inside.requests


def test_the_socket_of_an_address_in_a_url_is_guarded_too(inside):
    async def ask() -> None:
        async with request.open_session(CONFIG) as session, session.get(inside.base_url + "a.jpg"):
            pass

    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        asyncio.run(ask())
    assert isinstance(caught.value.os_error, ForbiddenAddressError)
    assert not inside.requests


def test_a_proxy_of_the_environment_is_not_used(outside, inside, monkeypatch):
    monkeypatch.setenv("http_proxy", inside.base_url)
    monkeypatch.setenv("HTTP_PROXY", inside.base_url)
    assert fetch_one(outside.answer("a.jpg", web.content(made.jpeg()))).picture
    assert not inside.requests


@pytest.fixture
def untrusted(tmp_path) -> Iterator[int]:
    """The port of an HTTPS server whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.2")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]), False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "key.pem")
    server = HTTPServer(("127.0.0.2", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_certificate_that_does_not_hold_is_told(untrusted):
    url = f"https://127.0.0.2:{untrusted}/a.jpg"
    assert fetch_one(url) == FetchResult(url=url, reason="bad_certificate", tries=1)


def test_whoever_crawls_the_internet_without_a_contact_is_warned_once(caplog):
    request._warn_of_no_contact.cache_clear()

    async def open_sockets(config: FetchConfig, *addresses: str) -> None:
        async with request.open_session(config) as session:
            for address in addresses:
                session.connector._socket_factory((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))).close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(open_sockets(CONFIG, "127.0.0.2"))
        asyncio.run(open_sockets(FetchConfig(contact="https://example.org"), "8.8.8.8"))
        assert not caplog.records
        asyncio.run(open_sockets(CONFIG, "8.8.8.8", "1.1.1.1"))
        asyncio.run(open_sockets(CONFIG, "8.8.8.8"))
    assert [record.message for record in caplog.records] == [
        "fetch.contact is not set: hosts that are crawled should be able to reach you"
    ]
