"""Fetching pictures over HTTP: many at a time, in order, through the gate of each host, with tries again."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import aiohttp
from yarl import URL

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.pictures import Picture, PictureConfig, RefusedPictureError, check_header, check_picture
from xmodal.crawl.politeness import HostDownError, HostGate
from xmodal.crawl.request import Body, FailedTryError, open_session, parse_url, request, unpack
from xmodal.crawl.retries import backoff_wait
from xmodal.crawl.spool import Spool

log = logging.getLogger(__name__)

# A unit is a task with one processor: a second thread would wait for it, and take more memory (a picture of 50 million
# pixels is 200 MB while it is decoded).
_NUM_DECODERS = 1
# So many pictures are begun for each that may be requested: those that wait for their host keep none of the others.
_BEGUN_PER_SLOT = 16
# So long a slot is kept for a picture whose host does not let it through at once; then it is another one's.
_LENT_SECONDS = 0.05
# So long a permit may wait for a slot. All that came meanwhile may be used in one burst, so it is short.
_FRESH_SECONDS = 0.05
# So many results may wait behind one that is slow; beyond so many bytes, on disk.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 1 << 25


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """A picture, or why there is none."""

    url: str
    picture: Picture | None = None
    reason: str | None = None
    """A code of `reasons.REASONS`; None where there is a picture."""
    http_status: int | None = None
    retryable: bool = False
    tries: int = 0
    """Without those that failed because the host as a whole was down."""


_Fetching = asyncio.Task[Callable[[], "FetchResult"]]


async def fetch_in_order(
    urls: Sequence[str], config: FetchConfig, pictures: PictureConfig, gate: HostGate
) -> AsyncIterator[FetchResult]:
    """Fetch `urls` and yield their results in the order given. Each request passes the `gate` of its host.

    Memory is bounded by the requests in flight, not by the number of URLs. An iteration that ends early ends all
    requests.
    """
    spool = Spool(_MAX_WAITING_BYTES)
    decoders = ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="decode")
    waiting: asyncio.Queue[_Fetching | None] = asyncio.Queue(_MAX_WAITING)
    running: set[_Fetching] = set()
    try:
        async with open_session(config) as session:
            room = _Room(spool)
            fetcher = _Fetcher(session, config, pictures, gate, decoders, room)
            begun = asyncio.Semaphore(_BEGUN_PER_SLOT * config.max_concurrent)

            async def fetch(url: str) -> Callable[[], FetchResult]:
                try:
                    return _spooled(await fetcher.fetch(url), spool)
                finally:
                    room.update()
                    begun.release()

            async def begin() -> None:
                for url in urls:
                    await begun.acquire()
                    task = asyncio.create_task(fetch(url))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    await waiting.put(task)
                await waiting.put(None)

            beginning = asyncio.create_task(begin())
            try:
                while True:
                    task = await waiting.get()
                    if task is None:
                        return
                    if not task.done():
                        with room.of_a_slow_one():
                            await task
                    result = task.result()()
                    room.update()
                    yield result
            finally:
                unfinished = [beginning, *running]
                for one in unfinished:
                    one.cancel()
                await asyncio.gather(*unfinished, return_exceptions=True)
    finally:
        decoders.shutdown(wait=False, cancel_futures=True)
        spool.close()


class _Room:
    """Whether more may be fetched: as long as there is memory; and, on to the disk, while all wait for a slow one.

    So what is fetched faster than it is taken from here goes through no disk.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._is_waited = False
        self._is_there = asyncio.Event()
        self.update()

    @property
    def is_there(self) -> bool:
        """Whether more may be fetched now."""
        return self._is_there.is_set()

    async def wait(self) -> None:
        """Wait until more may be fetched."""
        await self._is_there.wait()

    def update(self) -> None:
        """To be called when the spool has changed."""
        if self._is_waited or not self._spool.is_full:
            self._is_there.set()
        else:
            self._is_there.clear()

    @contextmanager
    def of_a_slow_one(self) -> Iterator[None]:
        """While the next result is waited for."""
        self._is_waited = True
        self.update()
        try:
            yield
        finally:
            self._is_waited = False
            self.update()


def _spooled(result: FetchResult, spool: Spool) -> Callable[[], FetchResult]:
    """What gives the result when its turn comes."""
    picture = result.picture
    if picture is None:
        return lambda: result
    take = spool.put(picture.content)
    # Only these: the result itself would keep the content in memory.
    bare_result, bare_picture = replace(result, picture=None), replace(picture, content=b"")
    return lambda: replace(bare_result, picture=replace(bare_picture, content=take()))


class _Slots:
    """So many requests at a time. Those who have a permit already, which grows stale, come first; then pictures that
    were asked for before, as others wait behind them."""

    def __init__(self, num_free: int) -> None:
        # Above 0 only while nobody waits.
        self._num_free = num_free
        self._permitted: deque[asyncio.Future[None]] = deque()
        self._begun: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def take(self, *, has_begun: bool) -> None:
        """Wait for a slot, for a picture that was asked for before (`has_begun`) or not."""
        await self._take(self._begun if has_begun else self._others)

    async def take_soon(self, seconds: float) -> bool:
        """Wait for a slot for so long, before all who wait in `take`; whether there was one."""
        try:
            async with asyncio.timeout(seconds):
                await self._take(self._permitted)
        except TimeoutError:
            return False
        return True

    async def _take(self, queue: "deque[asyncio.Future[None]]") -> None:
        if self._num_free:
            self._num_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """A slot is free again."""
        for queue in (self._permitted, self._begun, self._others):
            while queue:
                turn = queue.popleft()
                if not turn.done():  # else cancelled
                    turn.set_result(None)
                    return
        self._num_free += 1


class _Slot:
    """A slot of one request, to be given back once; while it is `lent`, after a while at the latest."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self.is_held = True

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within the block, it is given back when `_LENT_SECONDS` are over; and where the block fails."""
        timer = asyncio.get_running_loop().call_later(_LENT_SECONDS, self.give_back)
        try:
            yield
        except BaseException:
            self.give_back()
            raise
        finally:
            timer.cancel()

    def give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            self._slots.give_back()


@dataclass(kw_only=True)
class _Effort:
    """What one picture has cost so far, waiting for its hosts' turns not counted."""

    requests: int = 0
    tries: int = 0
    failures: int = 0
    seconds: float = 0.0
    seconds_of_try: float = 0.0


class _Fetcher:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        config: FetchConfig,
        pictures: PictureConfig,
        gate: HostGate,
        decoders: ThreadPoolExecutor,
        room: _Room,
    ) -> None:
        self._session, self._config, self._pictures, self._gate = session, config, pictures, gate
        self._decoders, self._room = decoders, room
        self._slots = _Slots(config.max_concurrent)
        self._answered: dict[str, float] = {}
        """Host → when it last gave an answer, be it an error."""

    async def fetch(self, url: str) -> FetchResult:
        """Try until there is a picture, or no further try is worth it."""
        effort = _Effort()
        try:
            first = parse_url(url, self._config)
        except FailedTryError as failure:
            return FetchResult(url=url, reason=failure.reason)
        while True:
            effort.seconds_of_try = 0.0
            try:
                picture = await self._follow(first, effort)
            except RefusedPictureError as error:
                return FetchResult(url=url, reason=error.reason, http_status=200, tries=effort.tries + 1)
            except FailedTryError as failure:
                effort.tries += failure.counts
                effort.failures += 1
                if not self._is_tried_again(failure, effort):
                    return FetchResult(
                        url=url,
                        reason=failure.reason,
                        http_status=failure.http_status,
                        retryable=failure.retryable,
                        tries=effort.tries,
                    )
            else:
                return FetchResult(url=url, picture=picture, http_status=200, tries=effort.tries + 1)
            wait = backoff_wait(
                self._config.backoff_seconds, self._config.max_backoff_seconds, effort.failures, random.random()
            )
            effort.seconds += wait
            await asyncio.sleep(wait)

    def _is_tried_again(self, failure: FailedTryError, effort: _Effort) -> bool:
        return (
            failure.retryable
            and failure.reason != "host_down"
            and effort.tries < self._config.max_tries
            and effort.seconds < self._config.max_seconds_per_picture
        )

    async def _follow(self, url: URL, effort: _Effort) -> Picture:
        """One try: a request, and one for each redirect. Raises FailedTryError and RefusedPictureError."""
        for _ in range(self._config.max_redirects + 1):
            answer = await self._visit(url, effort)
            if isinstance(answer, Picture):
                return answer
            url = parse_url(answer, self._config, base=url)
        raise FailedTryError("too_many_redirects")

    async def _visit(self, url: URL, effort: _Effort) -> Picture | str:
        """One request through the gate of its host: the picture, or where a redirect leads to."""
        # With the dot that may end it, a name leads to the same host.
        host = (url.raw_host or "").rstrip(".")
        await self._enter(host, has_begun=effort.requests > 0)
        try:
            answer = await self._ask(url, host, effort)
            # The request's slot is kept: nothing is fetched faster than it is decoded.
            return answer if isinstance(answer, str) else await self._check(answer)
        finally:
            self._slots.give_back()

    async def _enter(self, host: str, *, has_begun: bool) -> None:
        """Wait for room, a slot and the host's permit, and return with the latter two.

        A picture that was asked for before needs no room: all that fills it waits for such ones.

        A slot that is held while a host is waited for would keep other hosts' pictures from theirs; so it is held for a
        moment, and then taken again when the permit is there. A permit that is held while there is no slot, or nothing
        may be fetched, such as while the teacher still reads, would keep the whole cluster from the host; many such
        would be used in one burst, and after the host has asked for a pause. So it is given back, and asked for anew.
        """
        while True:
            if not has_begun:
                await self._room.wait()
            await self._slots.take(has_begun=has_begun)
            slot = _Slot(self._slots)
            if not (has_begun or self._room.is_there):
                # Others have filled it meanwhile.
                slot.give_back()
                continue
            try:
                with slot.lent():
                    await self._gate.enter(host)
            except HostDownError:
                failure = FailedTryError("host_down", retryable=True)
                failure.counts = False
                raise failure from None
            try:
                if (has_begun or self._room.is_there) and (slot.is_held or await self._slots.take_soon(_FRESH_SECONDS)):
                    return
            except asyncio.CancelledError:
                await self._gate.leave(host, answered=None)
                raise
            slot.give_back()
            await self._gate.leave(host, answered=None)

    async def _ask(self, url: URL, host: str, effort: _Effort) -> Body | str:
        """The answer to one request; whatever comes of it, the gate is told."""
        config = self._config
        effort.requests += 1
        seconds = min(config.total_seconds - effort.seconds_of_try, config.max_seconds_per_picture - effort.seconds)
        had_its_time = seconds >= min(config.idle_seconds, config.total_seconds)
        start = time.monotonic()
        try:
            # At least a moment: to aiohttp, no time at all means no limit.
            answer = await request(self._session, url, max(seconds, 0.001), config)
        except FailedTryError as failure:
            if failure.answered:
                self._answered[host] = time.monotonic()
            answered, is_silent = failure.answered, failure.answered is None and had_its_time
            if is_silent and effort.failures == 0 and self._answered.get(host, 0.0) < start:
                # All of the host is silent, not this picture alone. One that has failed before may be the cause itself:
                # the last ones of a unit are those that never come.
                answered = False
            failure.counts = await self._gate.leave(host, answered=answered, retry_after=failure.retry_after)
            if is_silent:
                failure.counts = True  # else it would be asked for without end
            raise
        except Exception as error:  # noqa: BLE001  whatever a hostile answer trips over costs its own picture alone
            await self._gate.leave(host, answered=None)
            raise _failure_of_ours(error) from None
        except BaseException:
            # Cancelled, which says nothing of the host.
            await self._gate.leave(host, answered=None)
            raise
        finally:
            spent = time.monotonic() - start
            effort.seconds += spent
            effort.seconds_of_try += spent
        self._answered[host] = time.monotonic()
        await self._gate.leave(host, answered=True)
        return answer

    async def _check(self, body: Body) -> Picture:
        try:
            if not body.encoding and (picture := check_header(body.content, self._pictures)) is not None:
                return picture
            # Decoding takes the processor for long enough to stall every other download.
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._unpack_and_check, body)
        except (FailedTryError, RefusedPictureError):
            raise
        except Exception as error:  # noqa: BLE001  as in `_ask`
            raise _failure_of_ours(error) from None

    def _unpack_and_check(self, body: Body) -> Picture:
        return check_picture(unpack(body, self._config.max_bytes), self._pictures)


def _failure_of_ours(error: Exception) -> FailedTryError:
    """What an error that no rule foresees says of its picture: that it may come another time."""
    if isinstance(error, MemoryError):
        return FailedTryError("out_of_memory", retryable=True)
    log.warning("a picture is left out for an error of xmodal's own, please report it", exc_info=error)
    return FailedTryError("internal_error", retryable=True)
