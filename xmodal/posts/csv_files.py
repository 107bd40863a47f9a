"""CSV files → posts. A broken row costs no neighbour, also where a quote that nobody closes swallows what follows."""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from xmodal.posts.compressed import open_posts
from xmodal.posts.json_files import Found
from xmodal.posts.post import UnreadablePostError, parse_post
from xmodal.posts.tables import COLUMNS, check_columns, media_of_cell

MAX_ROW_CHARACTERS = 1 << 20
"""A longer row is one whose quotes are broken, or no post."""


def csv_posts(file: BinaryIO, path: str) -> Iterator[Found]:
    """The posts of a CSV file with a header, its columns by their names. Raises UserError where columns are missing."""
    rows = csv_rows(file)
    header = csv_header(rows)
    check_columns(path, header)
    for line, row in rows:
        try:
            if isinstance(row, UnreadablePostError):
                raise row
            if len(row) != len(header):
                raise UnreadablePostError("bad_row", f"row: {len(row)} fields, where the header has {len(header)}")
            record = {name: _decoded(name, cell) for name, cell in zip(header, row, strict=True) if name in COLUMNS}
            yield line, parse_post(record | {"media": media_of_cell(record["media"])})
        except UnreadablePostError as error:
            yield line, error


def check_csv(path: str) -> None:
    """Raise UserError where columns are missing."""
    with open_posts(path) as file:
        check_columns(path, csv_header(csv_rows(file)))


def csv_header(rows: Iterator[tuple[int, list[str] | UnreadablePostError]]) -> list[str]:
    """The names of the columns; none for an empty file, or one that does not begin with a row."""
    _, header = next(rows, (0, []))
    return [name.strip() for name in header] if isinstance(header, list) else []


def csv_rows(file: BinaryIO) -> Iterator[tuple[int, list[str] | UnreadablePostError]]:
    """The rows of a CSV file with the lines that they begin at; blank lines are passed over.

    Bytes that are no UTF-8 are halves of surrogate pairs in the cells. After a row that is broken, reading goes on at
    the line after its first.
    """
    csv.field_size_limit(MAX_ROW_CHARACTERS)  # of the whole process; the default, 131,072, refuses long texts
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_row()
        try:
            row = next(reader, None)
        except (csv.Error, _RowTooLongError):
            yield lines.first, UnreadablePostError("bad_row", "row: broken quotes, or too long")
            lines.go_back()
            continue
        if row is None:
            return
        if row:
            yield lines.first, row


class _RowTooLongError(Exception):
    pass


class _Lines:
    """The lines of a file for the csv module, which asks for as many as a row takes; and back to them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._next_line = 1
        self._given_back: deque[str] = deque()
        self._of_row: list[str] = []
        self._row_characters = 0
        self.first = 1
        """The line that the row begins at."""

    def begin_row(self) -> None:
        self.first = self._next_line
        self._of_row = []
        self._row_characters = 0

    def go_back(self) -> None:
        """Read again what the row took, but for its first line."""
        self._given_back.extendleft(reversed(self._of_row[1:]))
        self._next_line -= len(self._of_row[1:])

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._row_characters > MAX_ROW_CHARACTERS:
            raise _RowTooLongError
        is_given_back = bool(self._given_back)
        line = self._given_back.popleft() if is_given_back else self._file.readline(MAX_ROW_CHARACTERS)
        if not line:
            raise StopIteration
        self._next_line += 1
        self._of_row.append(line)
        self._row_characters += len(line)
        if len(line) == MAX_ROW_CHARACTERS and not line.endswith(("\n", "\r")):
            # Of a line that is given back, the rest was skipped when it was read.
            if not is_given_back:
                self._skip_line()
            raise _RowTooLongError
        return line

    def _skip_line(self) -> None:
        while (rest := self._file.readline(MAX_ROW_CHARACTERS)) and not rest.endswith(("\n", "\r")):
            pass


def _decoded(name: str, cell: str) -> str | None:
    if re.search("[\udc80-\udcff]", cell):
        raise UnreadablePostError("bad_row", f"{name}: not UTF-8")
    return cell or None
