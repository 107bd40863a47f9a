"""The limits of `politeness` with a clock: for one process, and for all processes of a cluster.

A task that is alone has a `LocalGate`. Else one `GateKeeper` holds the state of all hosts. In a cluster it lives in one
process; every fetching task has a `SharedGate`, which asks it for as many permits as it has requests waiting: not every
request needs a message.

Between the two, messages may come twice or late, and a task may die or be cut off at any point. So a question has a
number, and is answered once; what a task reports are sums since its begin, not differences; and what a silent task held
is taken back, once.
"""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from xmodal.crawl.politeness import HostDownError, HostLimits, Over, PolitenessConfig

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 40.0
"""A task that is silent for so long has died; what it had under way is over."""
_FLUSH_SECONDS = 0.02
# Above so many hosts, those that are idle and well are forgotten.
_MOST_HOSTS = 10_000


@dataclass(kw_only=True)
class _Client:
    """What the keeper knows of a task."""

    heard: float
    """When it last said anything."""
    held: Counter[str] = field(default_factory=Counter)
    """Host → its requests under way."""
    reported: dict[str, Over] = field(default_factory=dict)
    """Host → the sums that it last reported."""
    questions: dict[str, tuple[int, asyncio.Future[int | None]]] = field(default_factory=dict)
    """Host → number of its last question, and the answer."""


class GateKeeper:
    """The limits of all hosts. Clients are those who ask: what they hold is given back when they fall silent."""

    def __init__(self, config: PolitenessConfig) -> None:
        self._config = config
        self._hosts: dict[str, _Host] = {}
        self._clients: dict[str, _Client] = {}
        self._swept = self._evicted = time.monotonic()

    async def enter(self, client: str, host: str, number: int, wanted: int) -> int | None:
        """Wait until up to `wanted` requests may be sent; how many. None where the host is given up for now.

        `number` is that of the client's question about this host: one that comes twice gets the same answer. 0 means
        that the client was not heard of for long, and must ask anew.
        """
        known = self._hear(client)
        question = known.questions.get(host)
        if question is None or question[0] != number:
            question = (number, asyncio.ensure_future(self._answer(client, host, wanted)))
            known.questions[host] = question
        return await asyncio.shield(question[1])

    async def _answer(self, client: str, host: str, wanted: int) -> int | None:
        started = time.monotonic()
        state = self._host(host)
        state.num_waiting += 1
        try:
            granted = await self._admit(state, client, wanted)
        finally:
            state.num_waiting -= 1
        state.seconds_waited += time.monotonic() - started
        if granted:
            state.num_requests += granted
            self._clients[client].held[host] += granted
        return granted

    async def _admit(self, state: "_Host", client: str, wanted: int) -> int | None:
        # The lock makes a queue: who came first is served first.
        async with state.turn:
            while True:
                now = time.monotonic()
                if self._is_silent(client, now):
                    return 0
                admission = state.limits.admit(wanted, now)
                if admission.granted:
                    return admission.granted
                if admission.is_down:
                    return None
                await state.wait(min(admission.wait, HEARTBEAT_SECONDS))
                self._sweep()

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        """Requests of a client are over: their sums since its begin, for the hosts of which there is news.

        Returns the verdict of `HostGate.leave` (of the last host, if several).
        """
        known, counts = self._hear(client), True
        for host, sums in hosts.items():
            state = self._host(host)
            over = sums.since(known.reported.get(host, Over()))
            if over.num_requests:  # else it came late, or twice
                known.reported[host] = sums
            # Of a client that was taken for dead, all has been given back before.
            num_released = min(known.held[host], over.num_requests)
            known.held[host] -= num_released
            state.limits.release(num_released)
            counts = state.limits.settle(over, time.monotonic())
            state.changed()
        return counts

    async def forget(self, client: str) -> None:
        """A client has ended."""
        if known := self._clients.get(client):
            for _, answer in known.questions.values():
                answer.cancel()
        self._drop(client)

    def _drop(self, client: str) -> None:
        if known := self._clients.pop(client, None):
            for host, num_held in known.held.items():
                if num_held:
                    state = self._host(host)
                    state.limits.release(num_held)
                    state.limits.settle(Over(unknown=num_held), time.monotonic())
                    state.changed()

    def busiest(self, most: int) -> dict[str, tuple[int, float]]:
        """Of the `most` hosts that were asked most: requests, and seconds that clients waited for their turn."""
        busiest = sorted(self._hosts.items(), key=lambda item: -item[1].num_requests)[:most]
        return {host: (state.num_requests, state.seconds_waited) for host, state in busiest}

    def _host(self, host: str) -> "_Host":
        if host not in self._hosts:
            now = time.monotonic()
            if len(self._hosts) >= _MOST_HOSTS and now - self._evicted >= HEARTBEAT_SECONDS:
                self._evicted = now
                self._hosts = {name: state for name, state in self._hosts.items() if not state.is_idle(now)}
            self._hosts[host] = _Host(self._config.of(host))
        return self._hosts[host]

    def _hear(self, client: str) -> _Client:
        known = self._clients.setdefault(client, _Client(heard=0.0))
        known.heard = time.monotonic()
        return known

    def _is_silent(self, client: str, now: float) -> bool:
        return client not in self._clients or now - self._clients[client].heard > SILENT_SECONDS

    def _sweep(self) -> None:
        """Give back what silent clients hold."""
        now = time.monotonic()
        if now - self._swept >= HEARTBEAT_SECONDS:
            self._swept = now
            for client in [client for client in self._clients if self._is_silent(client, now)]:
                self._drop(client)


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


class LocalGate:
    """The `HostGate` of a task that shares the limits of its hosts with no other."""

    def __init__(self, config: PolitenessConfig) -> None:
        self._config = config
        self._hosts: dict[str, _Host] = {}

    async def enter(self, host: str) -> None:
        """As `HostGate`."""
        state = self._hosts.get(host)
        if state is None:
            state = self._hosts[host] = _Host(self._config.of(host))
        async with state.turn:
            while True:
                admission = state.limits.admit(1, time.monotonic())
                if admission.granted:
                    return
                if admission.is_down:
                    raise HostDownError(host)
                await state.wait(min(admission.wait, HEARTBEAT_SECONDS))

    async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
        """As `HostGate`."""
        state, over = self._hosts[host], Over()
        over.add(answered=answered, retry_after=retry_after)
        state.limits.release(1)
        counts = state.limits.settle(over, time.monotonic())
        state.changed()
        return counts


class Keeper(Protocol):
    """How a `SharedGate` reaches the keeper, wherever it lives."""

    async def enter(self, client: str, host: str, number: int, wanted: int) -> int | None:
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
        self._num_questions = 0
        self._sums: dict[str, Over] = {}
        """Host → what became of all requests so far."""
        self._news: set[str] = set()
        """Hosts whose sums are not reported yet."""
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
            self._add(host, answered=answered, retry_after=retry_after)
            return await self._report([host])
        self._note(host, answered=answered)
        return True

    def _note(self, host: str, *, answered: bool | None) -> None:
        self._add(host, answered=answered)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon())

    def _add(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> None:
        self._sums.setdefault(host, Over()).add(answered=answered, retry_after=retry_after)
        self._news.add(host)

    async def _report(self, hosts: Collection[str]) -> bool:
        # Copies: the keeper may live in this process, and these go on being added to.
        sums = {host: replace(self._sums[host]) for host in hosts}
        for host in hosts:
            # A pause is asked for once, not in every report from then on.
            self._sums[host].retry_after = None
        self._news.difference_update(hosts)
        return await self._keeper.leave(self._client, sums)

    async def _flush_soon(self) -> None:
        await asyncio.sleep(_FLUSH_SECONDS)
        self._flushing = None
        await self._report(list(self._news))

    async def _ask(self, host: str, waiting: "deque[asyncio.Future[bool]]") -> None:
        """Ask for permits as long as anybody waits for some."""
        try:
            while waiting:
                self._num_questions += 1
                granted = await self._keeper.enter(self._client, host, self._num_questions, len(waiting))
                if granted is None:
                    while waiting:
                        _answer(waiting.popleft(), permit=False)
                for _ in range(granted or 0):
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
