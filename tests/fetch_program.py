"""Fetches one URL in a process of its own, and tells what came of it and how much memory it took.

python fetch_program.py URL '{"total_seconds": 2}' → {"reason": "timeout", "extra_bytes": 1234567}
"""

import asyncio
import json
import sys
from pathlib import Path

from open_gate import OpenGate

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import fetch_in_order
from xmodal.crawl.pictures import PictureConfig


def peak_bytes() -> int:
    """The most that this process has held; `ru_maxrss` would begin with what the process that started it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


async def main(urls: list[str], settings: dict[str, object]) -> None:
    config = FetchConfig(allow_networks=["127.0.0.0/8"], max_tries=1, **settings)  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # from here on, it is the peak
    before = peak_bytes()
    (result,) = [result async for result in fetch_in_order(urls, config, PictureConfig(), OpenGate())]
    extra = peak_bytes() - before
    json.dump({"reason": result.reason, "retryable": result.retryable, "extra_bytes": extra}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main([sys.argv[1]], json.loads(sys.argv[2])))
