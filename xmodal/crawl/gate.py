"""The limits of `politeness` with a clock: for one process, and for all processes of a cluster.

One `GateKeeper` holds the state of all hosts. In a cluster it lives in one process; every fetching task has a
`SharedGate`, which asks it for as many permits as it has requests waiting: not every request needs a message.
"""

import asyncio
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from typing import Protocol

from xmodal.crawl.politeness import HostDownError, HostLimits, Over, PolitenessConfig

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 40.0
"""A task that is silent for so long has died; what it had under way is over."""
_FLUSH_SECONDS = 0.02
# Above so many hosts, those that are idle and well are forgotten.
_MOST_HOSTS = 10_000


class GateKeeper:
    """The limits of all hosts. Clients are those who ask: what they hold is given back when they fall silent."""

    def __init__(self, config: PolitenessConfig) -> None:
        self._config = config
        self._hosts: dict[str, _Host] = {}
        self._open: dict[str, Counter[str]] = {}
        """Client → host → requests under way."""
        self._heard: dict[str, float] = {}
        self._swept = time.monotonic()

    async def enter(self, client: str, host: str, wanted: int) -> int:
        """Wait until up to `wanted` requests may be sent; how many. 0 where the host is given up for now."""
        started = time.monotonic()
        self._hear(client)
        state = self._host(host)
        state.num_waiting += 1
        try:
            granted = await self._admit(state, wanted)
        finally:
            state.num_waiting -= 1
        state.seconds_waited += time.monotonic() - started
        state.num_requests += granted
        # It may have waited for long: whoever died meanwhile is found silent from now on, and gives it back.
        self._hear(client)
        self._open.setdefault(client, Counter())[host] += granted
        return granted

    async def _admit(self, state: "_Host", wanted: int) -> int:
        # The lock makes a queue: who came first is served first.
        async with state.turn:
            while True:
                admission = state.limits.admit(wanted, time.monotonic())
                if admission.granted or admission.is_down:
                    return admission.granted
                await state.wait(min(admission.wait, HEARTBEAT_SECONDS))
                await self._sweep()

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        """Requests of a client are over. Returns the verdict of `HostGate.leave` (of the last host, if several)."""
        self._hear(client)
        counts = True
        held = self._open.setdefault(client, Counter())
        for host, over in hosts.items():
            state = self._host(host)
            held[host] -= over.num_requests
            counts = state.limits.settle(over, time.monotonic())
            state.changed()
        return counts

    async def forget(self, client: str) -> None:
        """A client has ended."""
        self._heard.pop(client, None)
        for host, num_open in self._open.pop(client, Counter()).items():
            if num_open > 0:
                state = self._host(host)
                state.limits.settle(Over(unknown=num_open), time.monotonic())
                state.changed()

    def busiest(self, most: int) -> dict[str, tuple[int, float]]:
        """Of the `most` hosts that were asked most: requests, and seconds that clients waited for their turn."""
        busiest = sorted(self._hosts.items(), key=lambda item: -item[1].num_requests)[:most]
        return {host: (state.num_requests, state.seconds_waited) for host, state in busiest}

    def _host(self, host: str) -> "_Host":
        if host not in self._hosts:
            if len(self._hosts) >= _MOST_HOSTS:
                now = time.monotonic()
                self._hosts = {name: state for name, state in self._hosts.items() if not state.is_idle(now)}
            self._hosts[host] = _Host(self._config.of(host))
        return self._hosts[host]

    def _hear(self, client: str) -> None:
        self._heard[client] = time.monotonic()

    async def _sweep(self) -> None:
        """Give back what silent clients hold."""
        now = time.monotonic()
        if now - self._swept >= HEARTBEAT_SECONDS:
            self._swept = now
            for client in [client for client, heard in self._heard.items() if now - heard > SILENT_SECONDS]:
                await self.forget(client)


class _Host:
    """A host's limits, and those who wait for them."""

    def __init__(self, config: PolitenessConfig) -> None:
        self.limits = HostLimits(config)
        self.turn = asyncio.Lock()
        self.num_waiting = 0
        self.num_requests = 0
        self.seconds_waited = 0.0
        self._event = asyncio.Event()

    def is_idle(self, now: float) -> bool:
        """Whether nothing is lost if it is forgotten."""
        return not self.num_waiting and self.limits.is_idle(now)

    def changed(self) -> None:
        """Something is over: whoever waits looks again."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until something changes, but no longer than this."""
        self._event.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)


class Keeper(Protocol):
    """How a `SharedGate` reaches the keeper, wherever it lives."""

    async def enter(self, client: str, host: str, wanted: int) -> int:
        """`GateKeeper.enter`."""

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        """`GateKeeper.leave`."""

    async def forget(self, client: str) -> None:
        """`GateKeeper.forget`."""


class SharedGate:
    """The `HostGate` of one task; `async with` it in the event loop that fetches."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._client = uuid.uuid4().hex
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}
        """Host → who waits: True for a permit, False where the host is given up."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._over: dict[str, Over] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SharedGate":
        self._heart = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._heart, self._flushing, *self._asking.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._keeper.forget(self._client)

    async def enter(self, host: str) -> None:
        """As `HostGate`."""
        permit: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(host, deque())
        waiting.append(permit)
        if host not in self._asking:
            self._asking[host] = asyncio.create_task(self._ask(host, waiting))
        try:
            granted = await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled() and permit.exception() is None and permit.result():
                self._note(host, answered=None)
            raise
        if not granted:
            raise HostDownError(host)

    async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
        """As `HostGate`."""
        if answered is False or retry_after is not None:
            # At once: others must know of it before they send more.
            over = self._over.pop(host, Over())
            over.add(answered=answered, retry_after=retry_after)
            return await self._keeper.leave(self._client, {host: over})
        self._note(host, answered=answered)
        return True

    def _note(self, host: str, *, answered: bool | None) -> None:
        self._over.setdefault(host, Over()).add(answered=answered)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        await asyncio.sleep(_FLUSH_SECONDS)
        self._flushing = None
        over, self._over = self._over, {}
        await self._keeper.leave(self._client, over)

    async def _ask(self, host: str, waiting: "deque[asyncio.Future[bool]]") -> None:
        """Ask for permits as long as anybody waits for some."""
        try:
            while waiting:
                granted = await self._keeper.enter(self._client, host, len(waiting))
                if not granted:
                    while waiting:
                        _answer(waiting.popleft(), permit=False)
                for _ in range(granted):
                    while waiting and waiting[0].done():
                        waiting.popleft()  # cancelled
                    if waiting:
                        _answer(waiting.popleft(), permit=True)
                    else:
                        self._note(host, answered=None)
        except Exception as error:  # noqa: BLE001  whoever waits has to be told, whatever it is
            while waiting:
                if not (permit := waiting.popleft()).done():
                    permit.set_exception(error)
        finally:
            del self._asking[host]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self._keeper.leave(self._client, {})


def _answer(waiting: "asyncio.Future[bool]", *, permit: bool) -> None:
    if not waiting.done():
        waiting.set_result(permit)
