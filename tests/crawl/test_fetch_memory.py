"""What tries to fill the memory or to never end is refused with its reason, in bounded memory and time."""

import functools
import io
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import made_pictures as made
import pytest
import web_server as web
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
MAX_BYTES = 20_000_000
EXTRA_BYTES = 5 * MAX_BYTES
"""To fetch one answer of at most `MAX_BYTES`: what was read, what was unpacked, and the copies of both."""
TEN_GIGABYTES = 10 * 10**9


def fetched(url: str, **settings: Any) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "fetch_program.py"), url, json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def bomb(window_bits: int) -> bytes:
    """Ten gigabytes of zeros in ten megabytes; after a full flush, the same bytes may be repeated."""
    packing = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    head = packing.compress(bytes(1)) + packing.flush(zlib.Z_FULL_FLUSH)
    piece = packing.compress(bytes(10**8)) + packing.flush(zlib.Z_FULL_FLUSH)
    return head + 100 * piece


def vast_png() -> bytes:
    """50,000 by 50,000 pixels that are really there, of one bit each, in a small file."""
    return made.encode(Image.new("1", (50_000, 50_000)), "PNG")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: web.content(made.HTML), "not_an_image"),
        (lambda: web.declared(TEN_GIGABYTES, bytes(1000)), "too_large"),
        (lambda: web.endless, "too_large"),
        (lambda: web.chunked(bytes(3 * MAX_BYTES), chunk=100), "too_large"),
        (lambda: web.encoded(bomb(31), "gzip"), "too_large"),
        (lambda: web.encoded(bomb(15), "deflate"), "too_large"),
        (lambda: web.encoded(bomb(-15), "deflate"), "too_large"),
        (lambda: web.encoded(bomb(31), "gzip, gzip"), "not_an_image"),
        (lambda: web.content(vast_png(), "image/png"), "too_many_pixels"),
        (lambda: web.content(made.png_that_claims(50_000, 50_000), "image/png"), "too_many_pixels"),
        (lambda: web.trickle(bytes(100_000)), "timeout"),
        (lambda: web.long_header(10**9), "bad_answer"),
        (lambda: web.many_headers(10**6), "bad_answer"),
    ],
    ids=[
        "for comparison", "10 GB declared", "no end", "small chunks", "gzip bomb", "zlib bomb", "deflate bomb",
        "packed twice", "vast PNG", "PNG that claims to be vast", "a byte now and then", "long header", "many headers",
    ],
)  # fmt: skip
def test_it_is_refused_with_its_reason_and_memory_stays_flat(server, answer, reason):
    url = server.answer("a.jpg", answer())
    total_seconds = 3 if reason == "timeout" else 60
    start = time.monotonic()
    result = fetched(url, max_bytes=MAX_BYTES, total_seconds=total_seconds)
    assert result["reason"] == reason
    assert result["retryable"] == (reason == "timeout")
    assert result["extra_bytes"] < EXTRA_BYTES
    assert time.monotonic() - start < total_seconds + 30  # the start of the program


def test_what_a_picture_takes_is_seen(server):
    content = made.jpeg() + bytes(MAX_BYTES // 2)  # what follows its end is kept
    result = fetched(server.answer("a.jpg", web.content(content)), max_bytes=MAX_BYTES)
    assert result["reason"] is None
    assert len(content) < result["extra_bytes"] < EXTRA_BYTES


def test_the_vast_png_is_a_whole_picture():
    # Else it would be refused for another reason than its size.
    with Image.open(io.BytesIO(made.encode(Image.new("1", (5_000, 5_000)), "PNG"))) as image:
        image.load()
    assert len(vast_png()) < 10**6


def test_an_answer_that_comes_too_slowly_is_given_up_before_its_time_is_over(server):
    url = server.answer("a.jpg", web.trickle(bytes(100_000)))
    start = time.monotonic()
    assert fetched(url, idle_seconds=2, total_seconds=600, min_bytes_per_second=500)["reason"] == "timeout"
    assert time.monotonic() - start < 60


def test_a_slow_answer_may_be_allowed(server):
    url = server.answer("a.jpg", web.trickle(made.jpeg()[:30]))
    assert fetched(url, idle_seconds=1, min_bytes_per_second=0)["reason"] == "undecodable"
