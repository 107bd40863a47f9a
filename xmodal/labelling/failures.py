"""What of a dataset gave no sample, over all rounds of retries."""

import json
from collections import Counter
from typing import Any

from shards.generations import newest_generations
from shards.storage import Storage
from xmodal.labelling.units import last_rounds, open_failures, round_name

_ENDING = ".failures.jsonl"


class OpenFailures:
    """The failures of a dataset that no later round has made good. Reads a unit's files when asked for it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # By the tars: a round of which no tar was committed has not happened.
        self._newest = newest_generations(name.removesuffix(".tar") for name in storage.names(".tar"))
        self._rounds = last_rounds(self._newest)
        self._files = set(storage.names(_ENDING))

    def last_round(self, unit: str) -> int:
        """The last round of retries of a unit, 0 for none."""
        return self._rounds.get(unit, 0)

    def of_unit(self, unit: str) -> list[Any]:
        """The open failures of a unit."""
        return open_failures(self._read(round_name(unit, number)) for number in range(self.last_round(unit) + 1))

    def retryable(self, unit: str) -> frozenset[tuple[str, int]]:
        """The pictures of a unit that may be there now, by post id and media number."""
        return frozenset(
            (failure["post_id"], failure["media_number"]) for failure in self.of_unit(unit) if failure["retryable"]
        )

    def all(self) -> list[dict[str, Any]]:
        """Those of all units, in their order."""
        return [failure for unit in sorted(self._rounds) for failure in self.of_unit(unit)]

    def count(self) -> tuple[Counter[str], int]:
        """How many there are of each reason, and how many can be tried again."""
        reasons: Counter[str] = Counter()
        retryable = 0
        for unit in sorted(self._rounds):
            for failure in self.of_unit(unit):
                reasons[failure["reason"]] += 1
                retryable += failure["retryable"]
        return reasons, retryable

    def _read(self, name: str) -> list[dict[str, Any]]:
        file = self._newest.get(name, name) + _ENDING
        if file not in self._files:
            return []
        return [json.loads(line) for line in self._storage.read(file).splitlines()]
