"""`xmodal forget`: who is to be forgotten → tombstones of a dataset and, if asked for, shards without their samples."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import pyarrow as pa

from shards.dataset import shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.scrub import ScrubSummary, scrub
from shards.storage import Storage, open_storage
from shards.tombstones import Tombstones, forgotten_rows, read_tombstones, record_tombstones
from xmodal.labelling.progress import SILENT_SECONDS, read_status
from xmodal.labelling.summaries import describe_shard
from xmodal.posts.compressed import BROKEN_FILE_ERRORS, open_posts
from xmodal.posts.files import find_files
from xmodal.posts.post import MAX_ENCODED_ID_LENGTH, encode_id

MAX_CONCURRENT_INDEXES = 16

Kind = Literal["id", "author"]
"""Which of a post's fields names are of, as the collectors write them in `deleted/`."""


@dataclass(frozen=True, kw_only=True)
class ForgetSummary:
    """What a dataset has to forget now."""

    new: Tombstones
    """Recorded by this run."""
    all: Tombstones
    samples: int
    """Theirs, in the shards as this run found them."""
    unknown_authors: int
    """Samples in the shards that do not say who posted them, where authors were to be forgotten."""
    scrubbed: ScrubSummary | None


def forget(
    dataset: str, *, posts: str | None, authors: str | None, reason: str = "", take_out: bool = False
) -> ForgetSummary:
    """Record what the files `posts` and `authors` name; with `take_out`, also rewrite the shards that hold any of it.

    All of it is recorded, or nothing. Run again after a crash, it goes on. Raises UserError for files with lines that
    name nobody, and for a dataset that does not say what is asked for of its samples.
    """
    asked = Tombstones(
        post_ids=read_names(posts, "id") if posts is not None else frozenset(),
        authors=read_names(authors, "author") if authors is not None else frozenset(),
    )
    storage = open_storage(dataset)
    if not any(map(storage.exists, ("recipe.json", "dataset.json"))) and not shard_names(storage):
        raise UserError(f"{dataset}: no dataset lies there", "give the folder or prefix that holds its shards")
    known = read_tombstones(storage)
    new = Tombstones(asked.post_ids - known.post_ids, asked.authors - known.authors)
    everyone = Tombstones(known.post_ids | asked.post_ids, known.authors | asked.authors)
    samples, unknown_authors = _look_for(storage, everyone)
    if new:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record_tombstones(storage, new, reason=reason, recorded_at=now)
    return ForgetSummary(
        new=new,
        all=everyone,
        samples=samples,
        unknown_authors=unknown_authors,
        scrubbed=_scrub(storage, everyone) if take_out else None,
    )


def read_names(path: str, kind: Kind) -> frozenset[str]:
    """The posts or authors that a file names, or the files of a folder or pattern: one a line, plain or as JSON.

    A JSON line holds the `id` of a post or an `author`, as those that the collectors write; of `deleted/`, which has
    both, each kind is taken for itself. Raises UserError where a line names nobody, or no line names any.
    """
    what = {"id": "post", "author": "author"}[kind]
    try:
        files = find_files(path)
    except UserError as error:
        raise UserError(error.what, f"give a file with one {what} a line") from error
    names: set[str] = set()
    bad: list[str] = []
    for file in files:
        for number, line in _lines(file):
            try:
                name = _name(line, kind)
            except (ValueError, RecursionError):
                bad.append(f"{file}: line {number}")
                continue
            if name is not None:
                names.add(name)
    if bad:
        more = f", and {len(bad) - 1} more such lines" if len(bad) > 1 else ""
        raise UserError(
            f"{bad[0]}: names no {what}{more}",
            f"mend or remove them, so that each line is one {what} or a JSON object; nothing was recorded",
        )
    if not names:
        raise UserError(f"{path}: names no {what}", f"give a file with one {what} a line")
    return frozenset(names)


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines with something in them, counted from 1."""
    try:
        with open_posts(file) as content:
            for number, line in enumerate(content, start=1):
                if line.strip():
                    yield number, line
    except (OSError, *BROKEN_FILE_ERRORS) as error:
        raise UserError(f"{file}: cannot be read: {error}", "give a whole file; nothing was recorded") from error


def _name(line: bytes, kind: Kind) -> str | None:
    """Whom a line names; None where it is somebody of the other kind. Raises ValueError where it is nobody."""
    text = line.decode("utf-8-sig").strip()
    if text.startswith("{"):
        record = json.loads(text)
        value = record.get(kind)
        if value is None and record.get("author" if kind == "id" else "id"):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        # As posts are read: half of a surrogate pair is no text.
        name = str(value).encode("utf-8", "replace").decode()
    elif len(text.split()) > 1:
        raise ValueError  # rather a line of a table
    else:
        name = text
    if not name or len(encode_id(name)) > MAX_ENCODED_ID_LENGTH:
        raise ValueError
    return name


def _look_for(storage: Storage, tombstones: Tombstones) -> tuple[int, int]:
    """How many samples there are to be forgotten, and how many whose author is not known.

    Raises UserError where samples have no field to be forgotten by.
    """
    with ThreadPoolExecutor(MAX_CONCURRENT_INDEXES) as pool:
        found = list(pool.map(partial(_look_into, storage, tombstones), shard_names(storage)))
    return sum(samples for samples, _ in found), sum(unknown for _, unknown in found)


def _look_into(storage: Storage, tombstones: Tombstones, name: str) -> tuple[int, int]:
    index = read_index(storage, name)
    if tombstones.post_ids and not _has_values(index, "post_id"):
        raise UserError(
            f"{storage.url}/{name}: its samples do not say which post they are of",
            "give their JSON a post_id; nothing was recorded",
        )
    if tombstones.authors and not _has_values(index, "author"):
        raise UserError(
            f"{storage.url}/{name}: its samples do not say who posted them, as an earlier xmodal made them",
            "forget their posts by --posts, or label the posts into a new dataset; nothing was recorded",
        )
    unknown = index["author"].to_pylist().count("") if tombstones.authors and index.num_rows else 0
    return int(forgotten_rows(index, tombstones).sum()), unknown


def _has_values(index: pa.Table, column: str) -> bool:
    return not index.num_rows or (column in index.column_names and not index[column].null_count)


def _scrub(storage: Storage, tombstones: Tombstones) -> ScrubSummary:
    status = read_status(storage)
    if status is not None and status["state"] != "stopped" and time.time() - status["updated"] <= SILENT_SECONDS:
        raise UserError(
            f"{storage.url}: `xmodal label` is at work on it; who is to be forgotten is recorded",
            f"let it end, or wait for {SILENT_SECONDS:.0f} s if it was killed; then run this again to scrub",
        )
    # A run that was killed has been silent for longer, so that its temporary files are older than this.
    return scrub(storage, tombstones, describe_shard, leftover_age_seconds=SILENT_SECONDS / 2)
