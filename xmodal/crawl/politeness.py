"""Who may press how hard on which host."""

from typing import Protocol


class HostDownError(Exception):
    """A host is given up for now: it has not answered for long, or asked for a longer pause than one waits."""


class HostGate(Protocol):
    """Lets requests to a host through one by one; shared by all that fetch, up to a whole cluster."""

    async def enter(self, host: str) -> None:
        """Wait until one request may be sent to `host`. Raises HostDownError. Whoever has entered must `leave`."""

    async def leave(self, host: str, *, answered: bool, retry_after: float | None = None) -> bool:
        """One request is over. `answered`: the host gave an answer, be it an error; False: no connection, a timeout.

        `retry_after`: seconds in which nobody may ask this host again. Returns whether a failure is to be counted as a
        try of its picture: False while the host as a whole does not answer.
        """


class OpenGate:
    """Holds nobody up."""

    async def enter(self, host: str) -> None:
        """Return at once."""

    async def leave(self, host: str, *, answered: bool, retry_after: float | None = None) -> bool:
        """Count every failure."""
        return True
