"""What every benchmark here prints and writes, so that figures can be compared and checked."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Mapping[str, Mapping[str, list[float]]]
"""Contender → figure → one value a round."""


def report(benchmark: str, work: str, packages: Sequence[str], results: Results, ratios: Mapping[str, float]) -> dict:
    """The document of a benchmark's run: what was measured, on what, by which versions, and what came out."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "benchmark": benchmark,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "work": work,
        "results": results,
        "ratios": dict(ratios),
    }


def write(document: Mapping[str, Any], file: str | None) -> None:
    """Print the ratios; write the whole document where a file was asked for."""
    print(json.dumps(document["ratios"], indent=2))
    if file:
        Path(file).write_text(json.dumps(document, indent=2) + "\n")
