"""Rows of tables → records: what CSV and Parquet have in common."""

import json
from typing import Any

from shards.errors import UserError
from xmodal.posts.post import UnreadablePostError

REQUIRED_COLUMNS = ("id", "text", "media")
COLUMNS = (*REQUIRED_COLUMNS, "lang", "created_at", "author", "source", "kind", "label")
"""The columns that are read, by their names; others are passed over."""


def check_columns(path: str, names: list[str]) -> None:
    """Raise UserError where a column is missing that every post needs."""
    missing = [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(missing)}",
            f"name its columns {', '.join(REQUIRED_COLUMNS)}, and if there are such {', '.join(COLUMNS[3:])}",
        )


def media_of_cell(cell: str | None) -> list[Any] | None:
    """The media of a cell of text: a JSON list, or addresses with spaces between. Raises UnreadablePostError."""
    if not cell or not cell.lstrip().startswith("["):
        return cell.split() if cell else None
    try:
        media = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise UnreadablePostError("bad_row", "media: not a JSON list") from error
    return list(media)
