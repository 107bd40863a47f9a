"""Whom a dataset has to forget: the posts and authors whose samples no later view may hold.

`tombstones/` in the dataset has a file for each time that some were recorded, a line for each of them with the time and
the reason. Files are only ever added, each visible when whole; what is forgotten is what all of them name together.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LEFTOVER_AGE_SECONDS, Storage, told_to_user

FOLDER = "tombstones"
_ENDING = ".jsonl"


@dataclass(frozen=True)
class Tombstones:
    """All that a dataset has to forget."""

    post_ids: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of both sets, whatever files they came from; empty where nothing is to be forgotten."""
        if not self:
            return ""
        return hashlib.sha256(json.dumps([sorted(self.post_ids), sorted(self.authors)]).encode()).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.post_ids or self.authors)

    def hold(self, post_id: str | None, author: str | None) -> bool:
        """Whether a post is to be forgotten, by its own id or by its author's."""
        return post_id in self.post_ids or author in self.authors


def read_tombstones(storage: Storage) -> Tombstones:
    """What a dataset has to forget; nothing where none of it was ever recorded.

    Raises UserError for a file that cannot be read: taken for empty, it would bring somebody back.
    """
    folder = storage.below(FOLDER)
    try:
        files = folder.names(_ENDING)
    except FileNotFoundError:
        return Tombstones()
    post_ids: set[str] = set()
    authors: set[str] = set()
    for file in files:
        for number, line in enumerate(folder.read(file).splitlines(), start=1):
            place, remedy = f"{folder.url}/{file}: line {number}", "put the file back from a copy of the dataset"
            record = parse_json_object(line, place, remedy)
            if isinstance(record.get("post_id"), str):
                post_ids.add(record["post_id"])
            elif isinstance(record.get("author"), str):
                authors.add(record["author"])
            else:
                raise UserError(f"{place}: names neither a post nor an author", remedy)
    return Tombstones(frozenset(post_ids), frozenset(authors))


def record_tombstones(storage: Storage, tombstones: Tombstones, *, reason: str, recorded_at: str) -> None:
    """Add posts and authors to what a dataset has to forget: all of them, or after a crash none.

    `recorded_at` is the time, ISO 8601. Raises UserError where the storage cannot be written to.
    """
    when = {"recorded_at": recorded_at, "reason": reason}
    records = _records("post_id", tombstones.post_ids, when) + _records("author", tombstones.authors, when)
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    # Named by its content: whoever records the same at the same time records it once.
    name = f"{hashlib.sha256(content).hexdigest()[:16]}{_ENDING}"
    folder = storage.below(FOLDER, create=True)
    temporary = folder.new_temporary(name)
    try:
        with told_to_user(temporary.parent):
            temporary.write_bytes(content)
        folder.commit(temporary, name)
    finally:
        folder.discard(temporary)
    folder.discard_leftovers(LEFTOVER_AGE_SECONDS)


def _records(kind: str, names: Collection[str], when: dict[str, str]) -> list[dict[str, str]]:
    return [{kind: name} | when for name in sorted(names)]


def forgotten_rows(index: pa.Table, tombstones: Tombstones) -> np.ndarray:
    """Which rows of a shard's index are of posts or authors to be forgotten: bool `(n,)`.

    By the columns `post_id` and `author`; one that is not there names nobody.
    """
    rows = np.zeros(index.num_rows, dtype=bool)
    for column, names in (("post_id", tombstones.post_ids), ("author", tombstones.authors)):
        if names and column in index.column_names:
            rows |= pc.is_in(index[column], value_set=pa.array(list(names), type=pa.string())).to_numpy()
    return rows
