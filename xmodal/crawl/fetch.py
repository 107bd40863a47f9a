"""Fetching pictures over HTTP: many at a time, in order, with caps on bytes, time, redirects and tries."""

import asyncio
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

import xmodal
from shards.checks import require_range
from xmodal.crawl.pictures import Picture, PictureConfig, RefusedPictureError, check_picture
from xmodal.crawl.politeness import HostGate

RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK = 1 << 16
# What no host name holds; a resolver would be asked for it, again and again.
_HOST = re.compile(r"[^\x00-\x20\x7f\"%<>\\^`{|}]+")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How pictures are fetched. The limits hold for one unit; a limit a host for a whole cluster is not there yet."""

    max_concurrent: int = 16
    """Requests of one unit at a time."""
    max_tries: int = 3
    """Tries for one picture, first included. Only retryable failures use them."""
    backoff_seconds: float = 0.5
    """Wait before the second try; doubled for each further one, and varied by half."""
    connect_seconds: float = 10.0
    """Longest wait for a connection."""
    total_seconds: float = 60.0
    """Longest time for one try, redirects and body included."""
    max_bytes: int = 20_000_000
    """Larger answers are dropped while reading."""
    max_redirects: int = 5
    """Longer chains of redirects are given up."""
    user_agent: str = f"xmodal/{xmodal.__version__}"
    """Add a way to reach you, such as `xmodal/0.1 (+https://example.org/crawl; crawl@example.org)`."""

    def __post_init__(self) -> None:
        require_range(self, "max_concurrent", "max_tries", "max_bytes", least=1)
        require_range(self, "connect_seconds", "total_seconds", above=0)
        require_range(self, "backoff_seconds", "max_redirects", least=0)


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """A picture, or why there is none."""

    url: str
    picture: Picture | None = None
    reason: str | None = None
    """A code of the failures file; None where there is a picture."""
    http_status: int | None = None
    retryable: bool = False
    tries: int = 0


class _FailedTryError(Exception):
    def __init__(self, reason: str, http_status: int | None = None, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.http_status, self.retryable = reason, http_status, retryable


async def fetch_in_order(
    urls: Sequence[str], config: FetchConfig, pictures: PictureConfig, gate: HostGate
) -> AsyncIterator[FetchResult]:
    """Fetch `urls` and yield their results in the order given; at most a few times `max_concurrent` are held."""
    limit = asyncio.Semaphore(config.max_concurrent)
    pending: deque[asyncio.Task[FetchResult]] = deque()
    remaining = iter(urls)
    async with _open_session(config) as session:

        async def fetch_within_limit(url: str) -> FetchResult:
            async with limit:
                return await _fetch(session, url, config, pictures)

        try:
            while True:
                # Some wait ahead of the limit, so that one slow picture at the front does not idle the others.
                while len(pending) < 4 * config.max_concurrent and (url := next(remaining, None)) is not None:
                    pending.append(asyncio.create_task(fetch_within_limit(url)))
                if not pending:
                    return
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()


def _open_session(config: FetchConfig) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=config.max_concurrent),
        timeout=aiohttp.ClientTimeout(total=config.total_seconds, connect=config.connect_seconds),
        headers={"User-Agent": config.user_agent, "Accept": "image/*"},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _fetch(session: aiohttp.ClientSession, url: str, config: FetchConfig, pictures: PictureConfig) -> FetchResult:
    failure = _FailedTryError("bad_url")
    tries = 0
    if not _is_fetchable(url):
        return FetchResult(url=url, reason=failure.reason)
    while tries < config.max_tries:
        if tries:
            await asyncio.sleep(backoff_wait(config.backoff_seconds, tries, random.random()))
        tries += 1
        try:
            content = await _read_answer(session, url, config)
            # Decoding takes the processor for long enough to stall every other download.
            picture = await asyncio.to_thread(check_picture, content, pictures)
        except RefusedPictureError as error:
            return FetchResult(url=url, reason=error.reason, http_status=200, tries=tries)
        except _FailedTryError as error:
            failure = error
            if not failure.retryable:
                break
        else:
            return FetchResult(url=url, picture=picture, http_status=200, tries=tries)
    return FetchResult(
        url=url, reason=failure.reason, http_status=failure.http_status, retryable=failure.retryable, tries=tries
    )


def backoff_wait(backoff_seconds: float, num_failures: int, jitter: float) -> float:
    """Seconds to wait after so many failed tries: doubled with each, and varied by half as `jitter` in [0, 1) says."""
    return backoff_seconds * 2 ** (num_failures - 1) * (0.5 + jitter)


def _is_fetchable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        return parts.scheme in ("http", "https") and bool(_HOST.fullmatch(host)) and (port is None or port > 0)
    except ValueError:
        return False


async def _read_answer(session: aiohttp.ClientSession, url: str, config: FetchConfig) -> bytes:
    """The body of a 200 answer. Raises _FailedTryError."""
    try:
        async with session.get(
            url,
            allow_redirects=config.max_redirects > 0,
            max_redirects=config.max_redirects + 1,  # aiohttp gives up at this many, not above it
        ) as answer:
            if answer.status != 200:
                raise _FailedTryError("http_error", answer.status, answer.status in RETRYABLE_STATUS)
            if (answer.content_length or 0) > config.max_bytes:
                raise _FailedTryError("too_large", 200)
            content = bytearray()
            # Counted while reading: the length may be missing, wrong, or that of the compressed body.
            async for chunk in answer.content.iter_chunked(_CHUNK):
                content += chunk
                if len(content) > config.max_bytes:
                    raise _FailedTryError("too_large", 200)
            return bytes(content)
    except aiohttp.TooManyRedirects:
        raise _FailedTryError("too_many_redirects") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise _FailedTryError("bad_url") from None
    except TimeoutError:
        raise _FailedTryError("timeout", retryable=True) from None
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
        raise _FailedTryError("cut_off", retryable=True) from None
    except (aiohttp.ClientError, OSError):
        raise _FailedTryError("connection_error", retryable=True) from None
    except ValueError:
        # UnicodeError: a host name that DNS cannot hold, such as one with an empty or too long label.
        raise _FailedTryError("bad_url") from None
