"""`xmodal forget`: who is to be forgotten → tombstones of a dataset and, if asked for, shards without their samples."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from shards.dataset import shard_names
from shards.errors import UserError
from shards.index import ID_FIELDS, DamagedTarError, read_index
from shards.scrub import ScrubSummary, scrub
from shards.storage import CorruptObjectError, Storage, open_storage
from shards.tombstones import Tombstones, forgotten_rows, read_tombstones, record_tombstones
from xmodal.labelling.progress import SILENT_SECONDS, read_status
from xmodal.labelling.summaries import describe_shard
from xmodal.posts.compressed import BROKEN_FILE_ERRORS, open_posts
from xmodal.posts.files import find_files
from xmodal.posts.post import MAX_ENCODED_ID_LENGTH, encode_id

MAX_CONCURRENT_INDEXES = 16
_NO_PLAIN_NAME = re.compile(r"""["'`,;(){}<>\[\]]""")
"""What stands in no id and no author's name, and in tables, lists and quotations of them."""

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
    unmatched_posts: int
    """Of the posts that the file names, those of which no sample was found."""
    unmatched_authors: int
    """Likewise of the authors."""
    unreadable: list[str]
    """Shards that could not be looked into, and why."""
    scrubbed: ScrubSummary | None


def forget(
    dataset: str, *, posts: str | None, authors: str | None, reason: str = "", take_out: bool = False
) -> ForgetSummary:
    """Record what the files `posts` and `authors` name; with `take_out`, also rewrite the shards that hold any of it.

    All of it is recorded, or nothing; a shard that cannot be read keeps nobody from being forgotten. Run again after a
    crash, it goes on. Raises UserError for files with lines that name nobody, and for a dataset that does not say what
    is asked for of its samples.
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
    found = _look_for(storage, everyone)
    if new:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record_tombstones(storage, new, reason=reason, recorded_at=now)
    return ForgetSummary(
        new=new,
        all=everyone,
        samples=found.samples,
        unknown_authors=found.unknown_authors,
        unmatched_posts=len(asked.post_ids - found.names.post_ids),
        unmatched_authors=len(asked.authors - found.names.authors),
        unreadable=found.unreadable,
        scrubbed=_scrub(storage, everyone) if take_out else None,
    )


def read_names(path: str, kind: Kind) -> frozenset[str]:
    """The posts or authors that a file names, or the files of a folder or pattern: one a line, plain or as JSON.

    A JSON line holds the `id` of a post or an `author`, as those that the collectors write, or a `post_id`, as in
    another dataset's `tombstones/`; of files that have both, each kind is taken for itself. Raises UserError where a
    line names nobody, or no line names any.
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
        names = {"id": record.get("id", record.get("post_id")), "author": record.get("author")}
        value = names[kind]
        if value is None and any(names.values()):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        # As posts are read: half of a surrogate pair is no text.
        name = str(value).encode("utf-8", "replace").decode()
    elif len(text.split()) > 1 or _NO_PLAIN_NAME.search(text):
        raise ValueError  # rather a line of a table, or of a list
    else:
        name = text
    if not name or (kind == "id" and len(encode_id(name)) > MAX_ENCODED_ID_LENGTH):
        raise ValueError
    return name


@dataclass(kw_only=True)
class _Found:
    """What the shards have of those who are to be forgotten."""

    samples: int = 0
    unknown_authors: int = 0
    names: Tombstones = field(default_factory=Tombstones)
    """Those of them whom samples name."""
    unreadable: list[str] = field(default_factory=list)


def _look_for(storage: Storage, tombstones: Tombstones) -> _Found:
    """Look into all indexes. Raises UserError where samples have no field to be forgotten by."""
    with ThreadPoolExecutor(MAX_CONCURRENT_INDEXES) as pool:
        parts = list(pool.map(partial(_look_into, storage, tombstones), shard_names(storage)))
    return _Found(
        samples=sum(part.samples for part in parts),
        unknown_authors=sum(part.unknown_authors for part in parts),
        names=Tombstones(
            frozenset().union(*(part.names.post_ids for part in parts)),
            frozenset().union(*(part.names.authors for part in parts)),
        ),
        unreadable=[why for part in parts for why in part.unreadable],
    )


def _look_into(storage: Storage, tombstones: Tombstones, name: str) -> _Found:
    try:
        index = read_index(storage, name, columns=["key", *ID_FIELDS])
    except FileNotFoundError:  # scrubbed or removed since it was listed
        return _Found(unreadable=[f"{storage.url}/{name}: it is not there any more"])
    except (DamagedTarError, CorruptObjectError) as error:
        return _Found(unreadable=[error.what if isinstance(error, UserError) else str(error)])
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
    rows = index.filter(pa.array(forgotten_rows(index, tombstones)))
    named = [
        frozenset(rows[column].to_pylist()) if column in rows.column_names else frozenset() for column in ID_FIELDS
    ]
    asks_for_authors = tombstones.authors and index.num_rows
    return _Found(
        samples=rows.num_rows,
        unknown_authors=pc.sum(pc.equal(index["author"], "")).as_py() if asks_for_authors else 0,
        names=Tombstones(named[0] & tombstones.post_ids, named[1] & tombstones.authors),
    )


def _has_values(index: pa.Table, column: str) -> bool:
    return not index.num_rows or (column in index.column_names and not index[column].null_count)


def _scrub(storage: Storage, tombstones: Tombstones) -> ScrubSummary:
    return scrub(
        storage,
        tombstones,
        describe_shard,
        refuse_writers=partial(_refuse_label, storage),
        # A run that was killed or stopped has been silent for longer, so that its temporary files are older than this.
        leftover_age_seconds=SILENT_SECONDS / 2,
    )


def _refuse_label(storage: Storage) -> None:
    status = read_status(storage)
    if status is not None and time.time() - status["updated"] <= SILENT_SECONDS:
        raise UserError(
            f"{storage.url}: `xmodal label` is at work on it, or was just stopped; who is to be forgotten is recorded",
            f"let it end, or wait for {SILENT_SECONDS:.0f} s if it was killed or stopped; then run this again to scrub",
        )
