"""Checks that configs make of their own values: one way to say what is allowed, and it holds for NaN too."""

import math

from shards.errors import ConfigError


def require_range(
    config: object,
    *keys: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Check that each of a config's values `keys` is finite and within the bounds given.

    `least` and `most` are allowed themselves, `above` and `below` are not. Raises ConfigError.
    """
    for key in keys:
        value = getattr(config, key)
        if not math.isfinite(value):
            raise ConfigError(key, value, "must be a finite number")
        allowed = (
            (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not allowed:
            raise ConfigError(key, value, _rule(least, above, most, below))


def require_folder(config: object, *keys: str) -> None:
    """Check that none of a config's values `keys` is a URL, where only a folder will do. Raises ConfigError."""
    for key in keys:
        if "://" in getattr(config, key):
            raise ConfigError(key, getattr(config, key), "must be a folder, not a URL")


def _rule(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    if most is None and below is None:
        return f"must be at least {least}" if above is None else f"must be above {above}"
    low = f"[{least}" if above is None else f"({above}"
    high = f"{most}]" if below is None else f"{below})"
    return f"is out of range {low}, {high}"
