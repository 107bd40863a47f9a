"""The files that a verb writes besides its table: numbers as JSON, pages as HTML."""

import json
from pathlib import Path

from shards.errors import UserError
from shards.json_object import without_nan
from shards.storage import LocalStorage


def check_output_file(key: str, file: str | None) -> None:
    """Raise UserError, before any work, for a file that cannot be written; `key` is the setting that names it."""
    if file is None:
        return
    if Path(file).is_dir():
        raise UserError(f"{key}: {file}: is a folder", "give a file")
    LocalStorage(Path(file).parent, create=True)


def write_json(file: str | Path, value: object) -> None:
    """Write a JSON file in one step; what is not a number becomes null, since strict readers know no NaN."""
    _write(file, json.dumps(without_nan(value), indent=2, allow_nan=False).encode() + b"\n")


def write_html(file: str | Path, page: str) -> None:
    """Write a page in one step."""
    # "replace": JSON can hold half a surrogate pair, which UTF-8 cannot.
    _write(file, page.encode(errors="replace"))


def _write(file: str | Path, content: bytes) -> None:
    LocalStorage(Path(file).parent, create=True).replace(Path(file).name, content)
