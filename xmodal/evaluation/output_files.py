"""What a verb writes besides its table, on a disk or on `s3://`: numbers as JSON, pages as HTML, files in a folder."""

import json
import os
from pathlib import Path

from shards.errors import UserError
from shards.json_object import without_nan
from shards.storage import Storage, open_folder_of, open_storage


def check_output_file(key: str, file: str | None) -> None:
    """Raise UserError, before any work, for a file that cannot be written; `key` is the setting that names it."""
    if file is None:
        return
    if os.path.isdir(file):
        raise UserError(f"{key}: {file}: is a folder", "give a file")
    _reach(open_folder_of(file)[0])


def open_output_folder(folder: str) -> Storage:
    """A folder, made if it is not there. Raises UserError, before any work, for one that cannot be written to."""
    storage = open_storage(folder, create=True)
    _reach(storage)
    return storage


def _reach(storage: Storage) -> None:
    """Raise UserError for a bucket that is not there or may not be looked into: making a storage asks it nothing."""
    if not storage.is_local:
        next(storage.names_below(), None)


def write_json(file: str | Path, value: object) -> None:
    """Write a JSON file in one step; what is not a number becomes null, since strict readers know no NaN."""
    _write(file, json.dumps(without_nan(value), indent=2, allow_nan=False).encode() + b"\n")


def write_html(file: str | Path, page: str) -> None:
    """Write a page in one step."""
    # "replace": JSON can hold half a surrogate pair, which UTF-8 cannot.
    _write(file, page.encode(errors="replace"))


def _write(file: str | Path, content: bytes) -> None:
    storage, name = open_folder_of(file)
    storage.replace(name, content)
