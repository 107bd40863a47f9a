"""How hard all fetching tasks together may press on one host: decided here without a clock or a network.

Requests to a host are spaced evenly, so that no second holds more than its share; so many are under way at a time; a
pause that the host asks for is kept by all; and a host that gives no answer is asked by one request now and then, until
it answers again.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from shards.checks import require_range
from shards.errors import ConfigError

# Permits handed out at a time cover so long: at high rates, one message for each request would cost more than it does.
_GRANT_SECONDS = 0.02
_OF_HOST_NAMES = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-:_")


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """The limits of one host that differ from those of the others."""

    host: str
    """Its name as it stands in URLs, such as `pbs.twimg.com`."""
    requests_per_second: float
    """Of this host, all fetching tasks together; 0 for no limit."""
    max_concurrent: int
    """Requests under way at this host, all fetching tasks together; 0 for no limit."""

    def __post_init__(self) -> None:
        require_range(self, "requests_per_second", "max_concurrent", least=0)
        if not self.host or not set(self.host) <= _OF_HOST_NAMES:
            raise ConfigError("host", self.host, "must be a host's name in small letters, without scheme and path")


@dataclass(frozen=True, kw_only=True)
class PolitenessConfig:
    """How hard the fetcher may press on one host, for the whole cluster."""

    requests_per_second: float = 20.0
    """Of one host, all fetching tasks together; 0 for no limit. Ask the host what it takes: media hosts answer 429 long
    before they answer slowly, and many a crawler's account was suspended."""
    max_concurrent: int = 16
    """Requests under way at one host, all fetching tasks together; 0 for no limit."""
    hosts: list[HostConfig] = field(default_factory=list)
    """Hosts with limits of their own, each with `host`, `requests_per_second` and `max_concurrent`."""
    max_pause_seconds: float = 120.0
    """Longest pause (`Retry-After`) that is waited for. While a host asks for a longer one, its pictures are failures
    that can be retried."""
    failures_to_open: int = 10
    """Requests in a row without any answer, after which a host is only asked by one request now and then. Where others
    that were sent later are answered, those that stall do not count."""
    patience_seconds: float = 120.0
    """How long such a host's pictures are waited for; then they are failures that can be retried."""

    def __post_init__(self) -> None:
        require_range(self, "requests_per_second", "max_concurrent", "max_pause_seconds", "patience_seconds", least=0)
        require_range(self, "failures_to_open", least=1)

    @property
    def has_limits(self) -> bool:
        """Whether tasks have to agree with each other before they ask a host."""
        limits = [(one.requests_per_second, one.max_concurrent) for one in self.hosts]
        return any(map(any, [*limits, (self.requests_per_second, self.max_concurrent)]))

    def of(self, host: str) -> "PolitenessConfig":
        """That of one host."""
        for own in self.hosts:
            if own.host == host:
                return replace(
                    self, requests_per_second=own.requests_per_second, max_concurrent=own.max_concurrent, hosts=[]
                )
        return self


class HostDownError(Exception):
    """A host is given up for now: it has not answered for long, or asked for a longer pause than one waits."""


class HostGate(Protocol):
    """Lets requests to a host through one by one; shared by all that fetch, up to a whole cluster."""

    async def enter(self, host: str) -> None:
        """Wait until one request may be sent to `host`. Raises HostDownError. Whoever has entered must `leave`."""

    async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
        """One request is over. `answered`: the host gave an answer, be it an error; False: it gave none, nor any other
        one since the request was sent.

        None where neither is known: the request was never sent or cancelled, or one picture of a host that is there
        stalled.
        `retry_after`: seconds in which nobody may ask this host again. Returns whether a failure is to be counted as a
        try of its picture: False while the host as a whole does not answer.
        """


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What a host's limits say to those who want to ask it now."""

    granted: int = 0
    """So many requests may be sent now."""
    wait: float = math.inf
    """If none: seconds until it is worth asking again; infinite where only the end of another request can change it."""
    is_down: bool = False
    """If none: do not wait."""


@dataclass(kw_only=True)
class Over:
    """What became of requests to one host that are over."""

    answers: int = 0
    failures: int = 0
    """No connection could be made, or no answer came."""
    unknown: int = 0
    """Cancelled, never sent, or stalled."""
    retry_after: float | None = None
    """Seconds in which the host wants to be left alone."""

    @property
    def num_requests(self) -> int:
        """All of them."""
        return self.answers + self.failures + self.unknown

    def since(self, earlier: "Over") -> "Over":
        """What of these sums came after `earlier` ones; nothing where they are the earlier ones."""
        return Over(
            answers=max(0, self.answers - earlier.answers),
            failures=max(0, self.failures - earlier.failures),
            unknown=max(0, self.unknown - earlier.unknown),
            retry_after=self.retry_after,
        )

    def add(self, *, answered: bool | None, retry_after: float | None = None) -> None:
        """One more."""
        self.answers += answered is True
        self.failures += answered is False
        self.unknown += answered is None
        if retry_after is not None:
            self.retry_after = max(retry_after, self.retry_after or 0.0)


class HostLimits:
    """The state of one host. Times are seconds of any clock that only goes forward."""

    def __init__(self, config: PolitenessConfig) -> None:
        self._config = config
        self.num_open = 0
        """Requests under way."""
        self._next_at = -math.inf
        self._paused_until = -math.inf
        self._failures = 0
        self._failing_since = 0.0
        self._probe_at = 0.0
        self._probing = False

    @property
    def is_failing(self) -> bool:
        """Whether the host as a whole is taken not to answer."""
        return self._failures >= self._config.failures_to_open

    def is_idle(self, now: float) -> bool:
        """Whether this state says no more than that of a host that was never asked, or was given up long ago."""
        failures_count = self._failures and now - self._failing_since <= self._config.patience_seconds
        return not self.num_open and not failures_count and now >= max(self._next_at, self._paused_until)

    def admit(self, wanted: int, now: float) -> Admission:
        """How many of `wanted` requests may be sent now; they count as under way from here on."""
        pause = self._paused_until - now
        if pause > self._config.max_pause_seconds:
            return Admission(is_down=True)
        if pause > 0:
            return Admission(wait=pause)
        if self.is_failing:
            return self._admit_probe(now)
        room = wanted
        if self._config.max_concurrent:
            room = min(room, self._config.max_concurrent - self.num_open)
        if room <= 0:
            return Admission()
        if (rate := self._config.requests_per_second) > 0:
            if now < self._next_at:
                return Admission(wait=self._next_at - now)
            room = min(room, max(1, int(rate * _GRANT_SECONDS)))
            self._next_at = now + room / rate
        self.num_open += room
        return Admission(granted=room)

    def _admit_probe(self, now: float) -> Admission:
        """One request at a time, each after a longer wait, says whether the host is back."""
        if not self._probing and now >= self._probe_at:
            self._probing = True
            self.num_open += 1
            return Admission(granted=1)
        if self._probing:
            return Admission()  # its end may change it
        if now - self._failing_since > self._config.patience_seconds:
            return Admission(is_down=True)
        return Admission(wait=self._probe_at - now)

    def release(self, num_requests: int) -> None:
        """So many requests are no longer under way."""
        self.num_open -= num_requests

    def settle(self, over: "Over", now: float) -> bool:
        """What became of requests that are over. Returns `HostGate.leave`'s verdict."""
        answers, failures, retry_after = over.answers, over.failures, over.retry_after
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after)
        if answers:
            self._failures, self._probing = 0, False
        elif failures:
            if not self._failures:
                self._failing_since = now
            self._failures += failures
            if self.is_failing:
                # A second, two, four …: doubled while the host stays away, up to half a minute.
                self._probe_at = now + min(30.0, max(1.0, (now - self._failing_since)))
            self._probing = False
        elif over.unknown:
            if self._probing:
                self._probe_at = now + 1.0
            self._probing = False
        return not self.is_failing
