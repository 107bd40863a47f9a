"""Parquet files → posts, a few rows at a time."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from xmodal.posts.json_files import Found
from xmodal.posts.post import Post, UnreadablePostError, parse_post
from xmodal.posts.tables import COLUMNS, check_columns, media_of_cell

ROWS_AT_A_TIME = 1024
BUFFER_BYTES = 1 << 20
"""How much of a column is read at a time: a row group may be larger than the memory."""


def parquet_posts(path: str) -> Iterator[Found]:
    """The posts of a Parquet file, its columns by their names; `line` counts the rows.

    `media` is a list of addresses or of structs with `url` and `type`, or text as in CSV. Raises UserError for a file
    that is no whole Parquet, and where columns are missing.
    """
    row = 0
    try:
        # Buffered ahead, as by default, all that was read stays in memory until the file is closed.
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            names = file.schema_arrow.names
            check_columns(path, names)
            columns = [name for name in COLUMNS if name in names]
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns):
                for record in _records(batch):
                    row += 1
                    yield row, _post_or_error(record)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file: {_first_line(error)}", "fetch or write it again") from error


def check_parquet(path: str) -> None:
    """Raise UserError for a file that is no Parquet, and where columns are missing."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {_first_line(error)}", "fetch or write it again") from error
    check_columns(path, names)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """The batch's rows as plain values; None for one that holds what has none: no UTF-8, a year beyond Python's."""
    batch = pa.record_batch([_with_microseconds(column) for column in batch.columns], names=batch.schema.names)
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except (ValueError, OverflowError):
                yield None


def _with_microseconds(column: pa.Array) -> pa.Array:
    """Python's times know no nanoseconds."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _post_or_error(record: dict[str, Any] | None) -> Post | UnreadablePostError:
    if record is None:
        return UnreadablePostError("bad_row", "row: text that is not UTF-8, or a time out of range")
    try:
        values = {name: _plain(name, value) for name, value in record.items()}
        if isinstance(values["media"], str):
            values["media"] = media_of_cell(values["media"])
        return parse_post(values)
    except UnreadablePostError as error:
        return error


def _plain(name: str, value: Any) -> Any:
    """Times as ISO 8601; bytes, which some writers make of text, as text."""
    if isinstance(value, date):  # or a datetime, which is one
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UnreadablePostError("bad_row", f"{name}: not UTF-8") from error
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
