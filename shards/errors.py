"""The one kind of error that a user is meant to read."""


class UserError(Exception):
    """A mistake in a user's input or configuration: shown as two lines, without a traceback, exit code 2.

    `what` says what is wrong (file, key, value); `remedy` says what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n        {self.remedy}"


class ToldElsewhereError(UserError):
    """A mistake that another process of the same job shows: this one only ends with the exit code."""


class ConfigError(UserError):
    """A setting that cannot be. Raised by a config's `__post_init__` with its own field's name as `key`."""

    def __init__(self, key: str, value: object, rule: str, source: str = "") -> None:
        self.key, self.value, self.rule, self.source = key, value, rule, source
        prefix = f"{source}: " if source else ""
        # A section of a list, such as `members[1]`, has no flag of its own.
        flag = "" if "[" in key else f", or give --{key} VALUE"
        super().__init__(f"{prefix}{key}: {value!r} {rule}", f"change {key} in the config{flag}")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[object, ...]]:
        # An exception is pickled with the arguments of its base class, which are not ours: workers send errors so.
        return type(self), (self.key, self.value, self.rule, self.source)

    def within(self, parent: str) -> "ConfigError":
        """The same error as the config around it sees it."""
        return ConfigError(f"{parent}.{self.key}", self.value, self.rule, self.source)

    def of(self, source: str) -> "ConfigError":
        """The same error with the file that it comes from."""
        return ConfigError(self.key, self.value, self.rule, source)
