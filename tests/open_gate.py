"""A gate that holds nobody up, for tests of what lies behind it."""


class OpenGate:
    async def enter(self, host: str) -> None:
        pass

    async def leave(self, host: str, *, answered: bool | None, retry_after: float | None = None) -> bool:
        return True
