"""A real HTTP server on loopback that answers as badly as the hosts do on which pictures of posts lie."""

import gzip
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["_Handler"], None]


class WebServer:
    """Answers each path as told; counts the requests."""

    def __init__(self, address: str) -> None:
        self.requests: Counter[str] = Counter()
        """Path → how many requests for it came in."""
        self.open_requests = self.most_open_requests = 0
        self.stopping = threading.Event()
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._server = _Server((address, 0), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.base_url = f"http://{address}:{self.port}/"

    def answer(self, path: str, answer: Answer) -> str:
        """Answer `path` (without its leading slash) like this from now on. Returns its URL."""
        self._answers["/" + path] = answer
        return self.base_url + path

    def handle(self, handler: "_Handler") -> None:
        with self._lock:
            self.requests[handler.path] += 1
            self.open_requests += 1
            self.most_open_requests = max(self.most_open_requests, self.open_requests)
        try:
            self._answers.get(handler.path, status(404))(handler)
        finally:
            with self._lock:
                self.open_requests -= 1


class _Server(ThreadingHTTPServer):
    owner: WebServer
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self.server.owner.handle(self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[WebServer]:
    """A server on a free port for as long as the block lasts."""
    server = WebServer(address)
    thread = threading.Thread(target=server._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server._server.shutdown()
        server._server.server_close()
        thread.join()


# --- answers ---------------------------------------------------------------------------------------------------------


def content(body: bytes, content_type: str = "image/jpeg", code: int = 200) -> Answer:
    """A whole answer."""
    return lambda handler: _send(handler, code, {"Content-Type": content_type, "Content-Length": str(len(body))}, body)


def status(code: int, **headers: str) -> Answer:
    """An answer of an error, with a page that says so."""
    page = b"<html><body>sorry</body></html>"
    fields = {"Content-Type": "text/html", "Content-Length": str(len(page))}
    return lambda handler: _send(handler, code, fields | headers, page)


def in_turn(*answers: Answer) -> Answer:
    """The first answer to the first request, the second to the second …; the last one to all that follow."""
    remaining = list(answers)

    def send(handler: _Handler) -> None:
        answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        answer(handler)

    return send


def redirect(location: str, code: int = 302) -> Answer:
    return lambda handler: _send(handler, code, {"Location": location, "Content-Length": "0"}, b"")


def chunked(body: bytes, chunk: int = 1 << 14) -> Answer:
    """A whole answer that does not say its length before."""

    def send(handler: _Handler) -> None:
        handler.send_head(200, {"Content-Type": "image/jpeg", "Transfer-Encoding": "chunked"})
        for start in range(0, len(body), chunk):
            piece = body[start : start + chunk]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    return send


def gzipped(body: bytes) -> Answer:
    return encoded(gzip.compress(body), "gzip")


def declared(num_bytes: int, body: bytes) -> Answer:
    """An answer that says it has `num_bytes`, sends `body`, and closes the connection."""

    def send(handler: _Handler) -> None:
        _send(handler, 200, {"Content-Type": "image/jpeg", "Content-Length": str(num_bytes)}, body)
        handler.close_connection = True

    return send


def close_at_once(handler: _Handler) -> None:
    """No answer at all."""
    handler.close_connection = True


def not_http(handler: _Handler) -> None:
    """An answer of another protocol."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def hang(handler: _Handler) -> None:
    """No answer, and the connection stays open."""
    handler.server.owner.stopping.wait(60)
    handler.close_connection = True


def trickle(body: bytes) -> Answer:
    """A byte now and then: never idle for long, never done."""

    def send(handler: _Handler) -> None:
        handler.send_head(200, {"Content-Type": "image/jpeg", "Content-Length": str(len(body))})
        for byte in body:
            handler.wfile.write(bytes([byte]))
            if handler.server.owner.stopping.wait(0.1):
                return

    return send


def endless(handler: _Handler) -> None:
    """A body that has no length and no end."""
    handler.send_head(200, {"Content-Type": "image/jpeg", "Connection": "close"})
    piece = bytes(1 << 20)
    while not handler.server.owner.stopping.is_set():
        handler.wfile.write(piece)


def long_header(num_bytes: int) -> Answer:
    """A header line that goes on and on."""

    def send(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        for _ in range(num_bytes // 1000):
            handler.wfile.write(b"a" * 1000)
        handler.close_connection = True

    return send


def many_headers(num_headers: int) -> Answer:
    """Header after header."""

    def send(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(num_headers):
            handler.wfile.write(b"X-%d: a\r\n" % number)
        handler.close_connection = True

    return send


def encoded(body: bytes, encoding: str) -> Answer:
    """A body that was packed before."""
    fields = {"Content-Type": "image/jpeg", "Content-Encoding": encoding, "Content-Length": str(len(body))}
    return lambda handler: _send(handler, 200, fields, body)


def after(seconds: float, answer: Answer) -> Answer:
    def send(handler: _Handler) -> None:
        time.sleep(seconds)
        answer(handler)

    return send


def _send(handler: _Handler, code: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_head(code, headers)
    handler.wfile.write(body)
