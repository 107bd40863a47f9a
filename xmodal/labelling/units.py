"""Names of units and of their retry rounds, and what of a dataset is still open. Effects: none."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_NAME = re.compile(r"(?P<unit>\d{6,})(?:-retry(?P<round>\d+))?")


def unit_name(number: int) -> str:
    """`123` → `000123`, the name of the unit's shard."""
    return f"{number:06d}"


def round_name(unit: str, retry_round: int) -> str:
    """Name of the shard that holds what a round of retries found: `000123-retry1`; round 0 is the unit's own shard."""
    return f"{unit}-retry{retry_round}" if retry_round else unit


def unit_of(name: str) -> str | None:
    """The unit that a shard (without its ending) belongs to; None for a name that is none of ours."""
    match = _NAME.fullmatch(name)
    return match["unit"] if match else None


def last_rounds(names: Iterable[str]) -> dict[str, int]:
    """Unit → its last round of retries, 0 for none, from the names of all shards (without their ending)."""
    rounds: dict[str, int] = {}
    for name in names:
        if match := _NAME.fullmatch(name):
            unit, retry_round = match["unit"], int(match["round"] or 0)
            rounds[unit] = max(rounds.get(unit, 0), retry_round)
    return rounds


def open_failures(failures_of_rounds: Iterable[Iterable[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """What of a unit gave no sample to this day, from the failures of all of its rounds in their order.

    A round takes up all that could be retried after the one before, so that its own failures replace them.
    """
    left: list[Mapping[str, Any]] = []
    for failures in failures_of_rounds:
        left = [failure for failure in left if not failure["retryable"]] + list(failures)
    return left
