"""Files of posts → posts, one at a time: memory does not grow with the input, a bad record does not end it."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shards.errors import UserError
from xmodal.posts.compressed import BROKEN_FILE_ERRORS, OnRead, open_posts
from xmodal.posts.csv_files import check_csv, csv_posts
from xmodal.posts.files import ending_of, find_files, fingerprint, short_names
from xmodal.posts.formats import SERVICES, PostsFormat
from xmodal.posts.json_files import Found, json_document_posts, json_line_posts
from xmodal.posts.parquet_files import check_parquet, parquet_posts
from xmodal.posts.post import Post
from xmodal.posts.t4sa import FoundInFile, T4saFiles, is_t4sa_name, require_texts, t4sa_files, t4sa_posts


@dataclass(frozen=True, kw_only=True)
class PostRecord:
    """One record of the input: a post, or why it is none."""

    line: int
    """Counted from 1; of a Parquet file the row, of a JSON document the record."""
    post: Post | None
    reason: str | None = None
    """A key of UNREADABLE, where there is no post."""
    detail: str | None = None
    """Which field could not be read, and why; nothing of what it holds."""
    post_id: str | None = None
    author: str | None = None
    """Where there is no post; like `post_id`, to be forgotten by."""
    file: str | None = None
    """The file, below the folder that all files of the input lie in."""


class ReadShare:
    """How much of the input was read, by bytes on disk. Of Parquet, whole files are counted."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.total_bytes = 0

    def on_read(self, num_bytes: int) -> None:
        """So many more."""
        self.num_bytes += num_bytes

    def share(self) -> float:
        """In [0, 1]."""
        return min(self.num_bytes / self.total_bytes, 1.0) if self.total_bytes else 0.0


def read_posts(
    posts: str | Sequence[str], posts_format: PostsFormat = "auto", read_share: ReadShare | None = None
) -> Iterator[PostRecord]:
    """The records of a file, a folder or a pattern of files, one file after another, sorted by name.

    `read_share` is kept up to date meanwhile. Raises UserError as `check_posts_file` does, and for a file that turns
    out to be cut off.
    """
    input_files = _input_files(posts, posts_format)
    names = short_names(_paths(input_files))
    read_share = read_share or ReadShare()
    read_along = input_files.read_with_posts if isinstance(input_files, T4saFiles) else input_files
    read_share.total_bytes = sum(os.path.getsize(path) for path in read_along)
    for path, line, found in _found_in(input_files, posts_format, read_share):
        if isinstance(found, Post):
            yield PostRecord(line=line, post=found, file=names[path])
        else:
            yield PostRecord(
                line=line,
                post=None,
                reason=found.reason,
                detail=found.detail,
                post_id=found.post_id,
                author=found.author,
                file=names[path],
            )


def check_posts_file(
    posts: str | Sequence[str], posts_format: PostsFormat = "auto", *, needs_texts: bool = True
) -> None:
    """Raise UserError if there are no such files, or they cannot be of the format, or lack columns or texts."""
    input_files = _input_files(posts, posts_format)
    if isinstance(input_files, T4saFiles):
        if needs_texts:
            require_texts(input_files)
        return
    for path in input_files:
        ending = ending_of(path)
        if not ending:
            raise UserError(
                f"{path}: not a known format of posts",
                "give files that end with .jsonl, .json or .csv, also followed by .gz or .zst, or with .parquet",
            )
        if posts_format in SERVICES and ending not in (".jsonl", ".json"):
            raise UserError(f"{path}: {posts_format} answers JSON, and this is none", "give --format auto")
        if ending == ".csv":
            check_csv(path)
        elif ending == ".parquet":
            check_parquet(path)


def posts_fingerprint(posts: str | Sequence[str], posts_format: PostsFormat = "auto") -> str:
    """The sha256 (hex) of the file, or of the sha256 of each: other content means other units."""
    return fingerprint(_paths(_input_files(posts, posts_format)))


def labelled(records: Iterable[PostRecord]) -> Iterator[PostRecord]:
    """The records; posts that came without a label are none."""
    for record in records:
        if record.post and record.post.label is None:
            detail = "label: missing, or none that is known"
            yield PostRecord(
                line=record.line,
                post=None,
                reason="no_label",
                detail=detail,
                post_id=record.post.id,
                author=record.post.author,
                file=record.file,
            )
        else:
            yield record


def units(records: Iterable[PostRecord], posts_per_unit: int) -> Iterator[tuple[int, list[PostRecord]]]:
    """Cut records into numbered units of `posts_per_unit`; the last may be shorter."""
    iterator = iter(records)
    for number in itertools.count():
        unit = list(itertools.islice(iterator, posts_per_unit))
        if not unit:
            return
        yield number, unit


def _input_files(posts: str | Sequence[str], posts_format: PostsFormat) -> list[str] | T4saFiles:
    files = find_files(posts)
    if posts_format == "t4sa" or (posts_format == "auto" and any(is_t4sa_name(path) for path in files)):
        return t4sa_files(files)
    return files


def _paths(input_files: list[str] | T4saFiles) -> list[str]:
    return input_files.paths if isinstance(input_files, T4saFiles) else input_files


def _found_in(
    input_files: list[str] | T4saFiles, posts_format: PostsFormat, read_share: ReadShare
) -> Iterator[FoundInFile]:
    if isinstance(input_files, T4saFiles):
        yield from t4sa_posts(input_files, read_share.on_read)
        return
    for path in input_files:
        for line, found in _file_posts(path, posts_format, read_share.on_read):
            yield path, line, found


def _file_posts(path: str, posts_format: PostsFormat, on_read: OnRead) -> Iterator[Found]:
    ending = ending_of(path)
    if ending == ".parquet":
        yield from parquet_posts(path)
        on_read(os.path.getsize(path))
        return
    try:
        with open_posts(path, on_read) as file:
            if ending == ".csv":
                yield from csv_posts(file, path)
            elif ending == ".json":
                yield from json_document_posts(file, path, posts_format)
            else:
                yield from json_line_posts(file, posts_format)
    except BROKEN_FILE_ERRORS as error:
        raise UserError(f"{path}: not a whole compressed file: {error}", "fetch or compress it again") from error
