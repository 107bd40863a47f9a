"""A local web server for the demo's pictures: what the media hosts are to real posts."""

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shards.errors import UserError


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as the fetcher expects of a real host

    def log_message(self, format: str, *args: object) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    # The fetcher opens many connections at once; of those that find no room here, each costs seconds.
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away, such as a labelling run that was stopped, is no error of the server's.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve_folder(folder: str, port: int) -> Iterator[int]:
    """Serve a folder on 127.0.0.1 as long as the block lasts. Port 0 takes a free one; yields the port.

    Raises UserError if the port is taken.
    """
    handler = functools.partial(_QuietHandler, directory=folder)
    try:
        server = _QuietServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(f"port {port} on 127.0.0.1: {error.strerror}", "give another one with --port") from error
    thread = threading.Thread(target=server.serve_forever, name="picture server", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
