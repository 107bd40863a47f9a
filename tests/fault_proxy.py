"""A proxy between an HTTP client and a server that does to answers what networks and overloaded servers do."""

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What becomes of one answer."""

    status: int = 0
    """Answer with this status, and do not ask the server."""
    cut_after: int = -1
    """Reset the connection after so many bytes of the body; 0 for an answer that is lost whole."""
    flip_at: int = -1
    """Change one bit of this byte of the body."""
    stall_after: int = -1
    """Say nothing more after so many bytes of the body, until the client gives up."""


Plan = Callable[[str, str, int], Fault | None]
"""From the request's method, its path and the number of requests of both before it, to its fault."""


@dataclass
class FaultProxy:
    """A running proxy; `plan` may be set anew at any time."""

    endpoint: str
    plan: Plan = lambda method, path, number: None
    num_faults: int = 0
    requests: Counter = field(default_factory=Counter)


@contextmanager
def proxying(target: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at `target`, as long as the block lasts."""
    target_host = urlsplit(target).netloc
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            number = proxy.requests[self.command, path]
            proxy.requests[self.command, path] += 1
            fault = proxy.plan(self.command, path, number)
            proxy.num_faults += fault is not None
            if fault and fault.status:
                self._answer(fault.status, [], b"<Error><Code>SlowDown</Code></Error>", None)
                return
            upstream = http.client.HTTPConnection(target_host, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            dropped = {"transfer-encoding", "connection", "content-length"}
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, content, fault, length)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815  the names that http.server calls

        def _answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            fault: Fault | None,
            length: str | None = None,
        ) -> None:
            if fault and fault.cut_after == 0:
                self._reset()
                return
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if fault and fault.flip_at >= 0 and content:
                place = min(fault.flip_at, len(content) - 1)
                content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            if fault and fault.cut_after > 0:
                self.wfile.write(content[: fault.cut_after])
                self.wfile.flush()
                time.sleep(0.02)  # for these bytes to arrive before the reset, which overtakes them
                self._reset()
            elif fault and fault.stall_after >= 0:
                self.wfile.write(content[: fault.stall_after])
                self.wfile.flush()
                ended.wait(60)
                self.close_connection = True
            else:
                self.wfile.write(content)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the resets that it makes itself

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultProxy(endpoint=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
