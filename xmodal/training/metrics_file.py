"""`metrics.jsonl`: one line for each logged step or validation of a run. Needs no torch, so that reports read it."""

import json
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.json_object import without_nan
from shards.storage import LocalStorage, told_to_user

NAME = "metrics.jsonl"


def append_metrics(folder: Path, kind: str, step: int, values: dict[str, Any]) -> None:
    """Add a line: `values` as of `step` done steps. What is no finite number becomes null.

    Raises UserError where the disk takes no more.
    """
    with told_to_user(folder), (folder / NAME).open("a", encoding="utf-8") as file:
        file.write(_to_line({"kind": kind, "step": step, **values}))


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop the lines of later steps, in one go: a resumed run does those again, and two lines would be two truths."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step] if step else []
    LocalStorage(folder, create=True).replace(NAME, "".join(map(_to_line, kept)).encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, each with `kind` ("step" or "validation") and `step`; none where there is no file.

    A last line cut off by a crash is left out. Raises UserError for any other line that is none.
    """
    path = folder / NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({**record, "kind": str(record["kind"]), "step": int(record["step"])})
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not a line of metrics", "give the `output` folder of `xmodal train`"
                ) from error
    return records


def _to_line(record: dict[str, Any]) -> str:
    return json.dumps(without_nan(record), allow_nan=False) + "\n"
