"""Files of JSON → posts: one record a line, or one document."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from shards.errors import UserError
from xmodal.posts.formats import PostsFormat, detect_format, record_posts
from xmodal.posts.post import Post, UnreadablePostError

MAX_LINE_BYTES = 1 << 26
"""A page of 500 posts is a few megabytes. A longer line is passed over, a longer document refused."""

Found = tuple[int, Post | UnreadablePostError]
"""A line of a file, counted from 1, and what was found in it. A page's posts share its line."""


def json_line_posts(file: BinaryIO, posts_format: PostsFormat) -> Iterator[Found]:
    """The posts of a file with a record a line. For `auto`, the first that is JSON tells the format."""
    for line, content in _numbered_lines(file):
        if content is None:
            yield line, UnreadablePostError("bad_json", f"line: longer than {MAX_LINE_BYTES} bytes")
            continue
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            yield line, UnreadablePostError("bad_json", "line: not JSON in UTF-8")
            continue
        known_format = detect_format(record) if posts_format == "auto" else posts_format
        if record:  # an empty page tells nothing
            posts_format = known_format
        for found in record_posts(record, known_format):
            yield line, found


def json_document_posts(file: BinaryIO, path: str, posts_format: PostsFormat) -> Iterator[Found]:
    """The posts of a file that is one document: a record, or a list of them. `line` counts the records.

    Raises UserError for a document that is no JSON, or too large to be held.
    """
    content = file.read(MAX_LINE_BYTES + 1)
    if len(content) > MAX_LINE_BYTES:
        raise UserError(f"{path}: a document of more than {MAX_LINE_BYTES} bytes", "write one record a line (.jsonl)")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON document", "if it holds one record a line, name it .jsonl") from error
    records: list[Any] = document if isinstance(document, list) else [document]
    for number, record in enumerate(records, start=1):
        if posts_format == "auto":
            posts_format = detect_format(record)
        for found in record_posts(record, posts_format):
            yield number, found


def _numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines and their numbers; None for one that is too long to be held."""
    line = 0
    while content := file.readline(MAX_LINE_BYTES):
        line += 1
        if len(content) < MAX_LINE_BYTES or content.endswith(b"\n"):
            yield line, content
            continue
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield line, None
