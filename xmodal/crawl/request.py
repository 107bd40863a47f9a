"""One request: URL → body, or why there is none. Caps on bytes and time, no cookies, no proxy, guarded addresses."""

import functools
import logging
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs
from yarl import URL

from xmodal.crawl.config import USER_AGENT_NAME, FetchConfig
from xmodal.crawl.guard import ForbiddenAddressError, GuardedResolver, literal_address
from xmodal.crawl.opt_out import is_opted_out
from xmodal.crawl.retries import PAUSE_STATUS, RETRYABLE_STATUS, retry_after_seconds

log = logging.getLogger(__name__)

REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
MAX_HEADER_BYTES = 8190
"""Of one header line; an answer has at most 128."""
_READ_BUFFER_BYTES = 1 << 18
_SECONDS_OF_A_NAME = 300
# What no host name holds; a resolver would be asked for it, again and again.
_HOST = re.compile(r"[^\x00-\x20\x7f\"%<>\\^`{|}]+")


class FailedTryError(Exception):
    """A request gave no picture. `reason` is a code of `reasons.REASONS`."""

    def __init__(
        self,
        reason: str,
        http_status: int | None = None,
        *,
        retryable: bool = False,
        answered: bool | None = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.http_status, self.retryable = reason, http_status, retryable
        self.answered = answered
        """Whether the host gave an answer, be it an error. None: there was a connection, and no answer on it."""
        self.retry_after = retry_after
        """Seconds for which the host wants to be left alone."""
        self.counts = True
        """Whether this is a try of its picture; not where its host as a whole is down."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """The content of a 200 answer as it was sent."""

    content: bytes
    encoding: str
    """Of the header Content-Encoding; hosts send some although we ask for none."""


@asynccontextmanager
async def open_session(config: FetchConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose sockets connect to allowed addresses only."""
    guard = config.guard

    def open_socket(address_info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, numeric = address_info
        address = guard.check(numeric[0])
        if not config.contact and not guard.lists(address):
            _warn_of_no_contact()
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        limit=config.max_concurrent,
        socket_factory=open_socket,
        resolver=GuardedResolver(guard),
        ttl_dns_cache=_SECONDS_OF_A_NAME,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": config.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # a proxy would connect to what it likes
        auto_decompress=False,  # it knows no cap
        read_bufsize=_READ_BUFFER_BYTES,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    ) as session:
        # A request of its own accord, after a connection that was closed, would pass no gate and count as no try; there
        # is no option for it.
        session._retry_connection = False
        yield session


@functools.cache
def _warn_of_no_contact() -> None:
    log.warning("fetch.contact is not set: hosts that are crawled should be able to reach you")


def parse_url(url: str, config: FetchConfig, base: URL | None = None) -> URL:
    """A URL that may be asked for. Raises FailedTryError with `bad_url` or `forbidden_address`."""
    try:
        parsed, written = URL(url), url
        if base is not None and not parsed.scheme:
            parsed = base.join(parsed)
            written = str(parsed)
        parts = urlsplit(written)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or port == 0 or not parsed.raw_host:
            raise FailedTryError("bad_url")
    except ValueError:
        raise FailedTryError("bad_url") from None
    literal = literal_address(parsed.raw_host)
    if literal is not None and not config.guard.allows(literal):
        raise FailedTryError("forbidden_address")
    return parsed


async def request(session: aiohttp.ClientSession, url: URL, seconds: float, config: FetchConfig) -> Body | str:
    """The body of a 200 answer, or where a redirect leads to. Raises FailedTryError."""
    timeout = aiohttp.ClientTimeout(total=seconds, connect=config.connect_seconds, sock_read=config.idle_seconds)
    status: int | None = None  # as long as there is no answer
    try:
        async with session.get(url, allow_redirects=False, timeout=timeout) as answer:
            status = answer.status
            headers = answer.headers
            is_redirect = status in REDIRECT_STATUS and hdrs.LOCATION in headers
            if status != 200 and not is_redirect:
                raise _http_error(answer)
            if config.obey_opt_out and is_opted_out(headers.getall("X-Robots-Tag", ()), USER_AGENT_NAME):
                raise FailedTryError("opted_out", status)
            if is_redirect:
                return headers[hdrs.LOCATION]
            content = await _read(answer, config)
            return Body(content=content, encoding=headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
    except aiohttp.ConnectionTimeoutError:
        raise FailedTryError("timeout", retryable=True, answered=False) from None
    except TimeoutError:
        raise FailedTryError("timeout", retryable=True, answered=_has_answered(status)) from None
    except aiohttp.ClientError as error:
        raise _of_client(error, _has_answered(status)) from None
    except OSError:
        raise FailedTryError("connection_error", retryable=True, answered=False) from None
    except ValueError:
        # UnicodeError: a host name that DNS cannot hold, such as one with an empty or too long label.
        raise FailedTryError("bad_url") from None


def _has_answered(status: int | None) -> bool | None:
    """By itself, a picture that stalls or breaks off on a connection that was made says nothing of its host."""
    return True if status is not None else None


def _http_error(answer: aiohttp.ClientResponse) -> FailedTryError:
    retry_after = None
    if answer.status in PAUSE_STATUS:
        retry_after = retry_after_seconds(answer.headers.get(hdrs.RETRY_AFTER), datetime.now(UTC))
    retryable = answer.status in RETRYABLE_STATUS
    return FailedTryError("http_error", answer.status, retryable=retryable, retry_after=retry_after)


def _of_client(error: aiohttp.ClientError, answered: bool | None) -> FailedTryError:
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ForbiddenAddressError):
        return FailedTryError("forbidden_address")
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return FailedTryError("bad_url")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return FailedTryError("bad_certificate")
    if isinstance(error, aiohttp.ClientResponseError):
        return FailedTryError("bad_answer")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return FailedTryError("cut_off", retryable=True, answered=answered)
    if isinstance(error, aiohttp.ClientConnectorError):
        answered = False
    return FailedTryError("connection_error", retryable=True, answered=answered)


async def _read(answer: aiohttp.ClientResponse, config: FetchConfig) -> bytes:
    """The body as sent. Counted while reading: the length may be missing or wrong."""
    if (answer.content_length or 0) > config.max_bytes:
        raise FailedTryError("too_large", 200)
    content = bytearray()
    start = time.monotonic()
    while piece := await answer.content.readany():
        content += piece
        if len(content) > config.max_bytes:
            raise FailedTryError("too_large", 200)
        seconds = time.monotonic() - start
        if seconds > config.idle_seconds and len(content) < config.min_bytes_per_second * seconds:
            raise FailedTryError("timeout", retryable=True)
    return bytes(content)


def unpack(body: Body, max_bytes: int) -> bytes:
    """The content of a body that may be compressed. What cannot be unpacked stays as it is: it may be a picture.

    Raises FailedTryError where it is larger than `max_bytes`, without unpacking more than that.
    """
    if body.encoding not in ("gzip", "x-gzip", "deflate"):
        return body.content
    for window_bits in (47, -15):  # with the header of gzip or zlib; some send bare `deflate`
        unpacking = zlib.decompressobj(window_bits)
        try:
            content = unpacking.decompress(body.content, max_bytes + 1)
        except zlib.error:
            continue
        if len(content) > max_bytes:
            raise FailedTryError("too_large", 200)
        return content
    return body.content
