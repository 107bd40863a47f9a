"""Numbers as a JSON file."""

import json
from pathlib import Path

from shards.json_object import without_nan
from shards.storage import LocalStorage


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step; what is not a number becomes null, since strict readers know no NaN."""
    content = json.dumps(without_nan(value), indent=2, allow_nan=False).encode() + b"\n"
    LocalStorage(path.parent, create=True).replace(path.name, content)
