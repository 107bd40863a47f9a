"""Files of posts → posts, one at a time: memory does not grow with the input, a bad record does not end it."""

import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from shards.errors import UserError
from xmodal.posts.post import Post, UnreadablePostError, parse_post

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True, kw_only=True)
class PostRecord:
    """One record of the input: a post, or why it is none."""

    line: int
    """Counted from 1."""
    post: Post | None
    reason: str | None = None
    """A code of the failures file, where there is no post."""
    post_id: str | None = None


def read_posts(path: str) -> Iterator[PostRecord]:
    """The records of a JSONL file, plain or compressed by gzip or zstd; blank lines are skipped.

    Raises UserError for a missing file, another format, or a compressed file that is cut off.
    """
    check_posts_file(path)
    try:
        with _open(path) as file:
            for line, content in enumerate(file, start=1):
                if content.strip():
                    yield _read_record(line, content)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: not a whole compressed file: {error}", "fetch or compress it again") from error


def check_posts_file(path: str) -> None:
    """Raise UserError if there is no such file or its format is not known."""
    if not path.endswith(FORMATS):
        raise UserError(f"{path}: not a known format of posts", f"give a file that ends with {', '.join(FORMATS)}")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file", "check the path of the posts in the config")


def posts_fingerprint(path: str) -> str:
    """The sha256 (hex) of the file: units are ranges of lines, so other content means other units."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def units(records: Iterable[PostRecord], posts_per_unit: int) -> Iterator[tuple[int, list[PostRecord]]]:
    """Cut records into numbered units of `posts_per_unit`; the last may be shorter."""
    iterator = iter(records)
    for number in itertools.count():
        unit = list(itertools.islice(iterator, posts_per_unit))
        if not unit:
            return
        yield number, unit


def _open(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path))
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """What a zstd file of any number of frames holds. zstandard's own reader takes one that is cut off for whole."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  closed with this one
        # Public dumps of posts are packed with `--long=31`; the default refuses windows above 128 MiB.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._content = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (length := self._content.readinto(buffer)):
            # Little at a time: what comes out of it is held at once, and may be thousands of times as much.
            self._packed = self._packed or self._file.read(1 << 12)
            if not self._packed:
                if self._frame:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._content = io.BytesIO(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return length

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_record(line: int, content: bytes) -> PostRecord:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return PostRecord(line=line, post=None, reason="bad_json")
    try:
        return PostRecord(line=line, post=parse_post(record))
    except UnreadablePostError as error:
        return PostRecord(line=line, post=None, reason=error.reason, post_id=error.post_id)
