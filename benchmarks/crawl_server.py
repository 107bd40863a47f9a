"""The web server that the contenders of `crawl.py` fetch from: answers are made beforehand, so that it is fast.

    python benchmarks/crawl_server.py PICTURES

It prints its port and serves the files of the folder PICTURES on 127.0.0.1 until its standard input ends. Of a path
`/KIND/NAME/NUMBER`, the number chooses the picture. What is `once503` is answered 503 the first time it is asked for,
what is `stalled` not at all, and all others at once.
"""

import asyncio
import sys
from pathlib import Path

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Pictures(asyncio.Protocol):
    """A connection; it may send many requests, one after another."""

    answers: list[bytes]
    asked: set[bytes] = set()  # noqa: RUF012  of all connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[:end], self._received[end + 4 :]
            self._answer(head.split(b" ", 2)[1], closes=b"connection: close" in head.lower())

    def _answer(self, path: bytes, closes: bool) -> None:
        kind, _, number = path[1:].split(b"/")
        if kind == b"stalled":
            return
        if kind == b"once503" and path not in self.asked:
            self.asked.add(path)
            self._transport.write(BUSY)
        else:
            self._transport.write(self.answers[int(number) % len(self.answers)])
        if closes:
            self._transport.close()


async def serve(folder: Path) -> None:
    """Serve until standard input ends, with whoever started this."""
    Pictures.answers = [answer(path.read_bytes()) for path in sorted(folder.iterdir())]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Pictures, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def answer(picture: bytes) -> bytes:
    """All of an answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
