"""What a writer of shards has left."""

import io
import json
import tarfile
from typing import Any

from shards.storage import LocalStorage


def members(content: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of a tar's members."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def failures(storage: LocalStorage, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read(f"{name}.failures.jsonl").splitlines()]
