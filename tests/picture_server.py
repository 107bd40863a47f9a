"""A picture server in a process of its own, which logs when each request came and how many were under way.

    python picture_server.py --host 127.0.0.1 --port 15080 --log requests.jsonl

`/N.jpg` is picture N, the same bytes each time. It ends with the process that started it.
"""

import argparse
import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from PIL import Image

_COMMENT_MARKER = b"\xff\xfe"


def picture(number: int) -> bytes:
    """A small JPEG; what sets it apart from the others is a comment, so that none takes long to make."""
    comment = str(number).encode()
    segment = _COMMENT_MARKER + (len(comment) + 2).to_bytes(2, "big") + comment
    base = _BASES[number % len(_BASES)]
    return base[:2] + segment + base[2:]


def _base(seed: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).rotate(360 * seed / 16).convert("RGB").save(file, "JPEG")
    return file.getvalue()


_BASES = [_base(seed) for seed in range(16)]


class _Pictures:
    def __init__(self, log: Path, delay: float, pause_at: int, pause_seconds: int) -> None:
        self._log = open(log, "a", buffering=1)  # noqa: SIM115  closed with the process
        self._delay, self._pause_at, self._pause_seconds = delay, pause_at, pause_seconds
        self._num_requests = self._under_way = 0

    async def answer(self, request: web.Request) -> web.Response:
        self._num_requests += 1
        self._under_way += 1
        paused = self._num_requests == self._pause_at
        told = {"time": time.time(), "path": request.path, "under_way": self._under_way, "paused": paused}
        self._log.write(json.dumps(told) + "\n")
        try:
            await asyncio.sleep(self._delay)
            if paused:
                return web.Response(status=429, headers={"Retry-After": str(self._pause_seconds)})
            return web.Response(body=picture(int(request.match_info["number"])), content_type="image/jpeg")
        finally:
            self._under_way -= 1


@contextmanager
def serving_pictures(
    log: Path,
    port: int,
    *,
    host: str = "127.0.0.1",
    delay: float = 0.0,
    pause_at: int = 0,
    pause_seconds: int = 0,
    prefix: Sequence[str] = (),
) -> Iterator[str]:
    """A server for as long as the block lasts, started by `prefix` (such as on another host). Yields its URL.

    The request number `pause_at` is answered 429 with Retry-After.
    """
    process = subprocess.Popen(
        [
            *(*prefix, sys.executable, __file__, "--host", host, "--port", str(port), "--log", str(log)),
            *("--delay", str(delay), "--pause_at", str(pause_at), "--pause_seconds", str(pause_seconds)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield f"http://{host}:{port}/"
    finally:
        process.kill()
        process.wait()


def requests_of(log: Path) -> list[dict]:
    """What a server has logged, in the order of time."""
    return [json.loads(line) for line in log.read_text().splitlines()]


async def _serve(arguments: argparse.Namespace) -> None:
    pictures = _Pictures(arguments.log, arguments.delay, arguments.pause_at, arguments.pause_seconds)
    app = web.Application()
    app.router.add_get(r"/{number:\d+}.jpg", pictures.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, arguments.host, arguments.port, backlog=1024).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def _end_with_parent() -> None:
    """Its end of the pipe is closed when the parent ends, however it does."""
    sys.stdin.read()
    sys.exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--pause_at", type=int, default=0)
    parser.add_argument("--pause_seconds", type=int, default=0)
    parsed = parser.parse_args()
    threading.Thread(target=lambda: asyncio.run(_serve(parsed)), daemon=True).start()
    _end_with_parent()
