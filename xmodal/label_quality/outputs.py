"""Where a comparison's numbers and page go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.json_object import without_nan
from shards.storage import LocalStorage
from xmodal.label_quality.page import Page, render


def check_outputs(json_file: str | None, html_file: str | None) -> None:
    """Raise UserError, before any work, for a file that cannot be written."""
    for key, file in (("json", json_file), ("output", html_file)):
        if file is not None:
            if Path(file).is_dir():
                raise UserError(f"{key}: {file}: is a folder", "give a file")
            LocalStorage(Path(file).parent, create=True)


def write_outputs(
    json_file: str | None, numbers: dict[str, Any], html_file: str | None, page: Callable[[], Page]
) -> None:
    """Write what was asked for, each file in one step."""
    if json_file is not None:
        content = json.dumps(without_nan(numbers), indent=2, allow_nan=False).encode() + b"\n"
        _write(json_file, content)
    if html_file is not None:
        _write(html_file, render(page()).encode(errors="replace"))


def _write(file: str, content: bytes) -> None:
    LocalStorage(Path(file).parent, create=True).replace(Path(file).name, content)
