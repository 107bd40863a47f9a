"""Fetches one URL in a process of its own, and tells what came of it and how much memory it took.

python fetch_program.py URL '{"total_seconds": 2}' → {"reason": "timeout", "extra_bytes": 1234567}
"""

import asyncio
import json
import resource
import sys

from open_gate import OpenGate

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import fetch_in_order
from xmodal.crawl.pictures import PictureConfig


async def main(urls: list[str], settings: dict[str, object]) -> None:
    config = FetchConfig(allow_networks=["127.0.0.0/8"], max_tries=1, **settings)  # type: ignore[arg-type]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (result,) = [result async for result in fetch_in_order(urls, config, PictureConfig(), OpenGate())]
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"reason": result.reason, "retryable": result.retryable, "extra_bytes": 1024 * extra}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main([sys.argv[1]], json.loads(sys.argv[2])))
