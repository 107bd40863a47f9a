"""Fetches that ask nobody for a permit."""

import asyncio

import made_pictures as made
from open_gate import OpenGate

from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.pictures import PictureConfig

CONFIG = FetchConfig(
    max_tries=3,
    backoff_seconds=0.01,
    connect_seconds=5,
    total_seconds=10,
    max_bytes=200_000,
    allow_networks=["127.0.0.0/8"],
)
PICTURES = PictureConfig()
JPEG = made.jpeg()


def fetch(urls: list[str], config: FetchConfig = CONFIG) -> list[FetchResult]:
    async def collect() -> list[FetchResult]:
        return [result async for result in fetch_in_order(urls, config, PICTURES, OpenGate())]

    return asyncio.run(collect())


def fetch_one(url: str, config: FetchConfig = CONFIG) -> FetchResult:
    (result,) = fetch([url], config)
    assert result.url == url
    return result
