"""What ships with the demo."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

EMOJI = Path(__file__).resolve().parents[2] / "data" / "emoji"


@pytest.fixture(scope="session")
def posts() -> list[dict[str, Any]]:
    with (EMOJI / "posts.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="session")
def polarities() -> list[dict[str, str]]:
    with (EMOJI / "human_polarity.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
