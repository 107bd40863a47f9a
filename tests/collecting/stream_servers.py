"""Real servers on 127.0.0.1 that stream posts as X, Mastodon and a Jetstream do, and fail as they do."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

TOKEN = "a-secret-token"
KEEP_ALIVE_SECONDS = 0.1


class Feed:
    """What a service has published so far, and how it treats its next connections."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.connections: list[str] = []
        """Path and query of each connection to the stream, refused ones included."""
        self.times: list[float] = []
        """When each of them came."""
        self.other_requests: list[str] = []
        self.refusals: list[tuple[int, dict[str, str]]] = []
        """Answers to the next connections instead of a stream."""
        self.drop_after: list[int] = []
        """How many events the next streams bring until they are cut off."""
        self.silent = False
        """Send nothing at all on streams, not even keep-alives, and keep them open."""
        self.rules: list[dict[str, str]] = []
        self.stopping = threading.Event()
        self.open_streams = 0
        self._changed = threading.Condition()

    def publish(self, *events: dict[str, Any]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def wait_for_streams(self, count: int, seconds: float = 120) -> None:
        """Wait until so many streams have been opened in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.open_streams >= count, seconds), "no connection"

    def note_connection(self, path: str) -> None:
        self.connections.append(path)
        self.times.append(time.time())

    def stream(self, place: int | None) -> Iterator[dict[str, Any] | None]:
        """The events from `place` on, or those from now on, until it is this stream's turn to be cut off.

        None for a keep-alive.
        """
        with self._changed:
            place = len(self.events) if place is None else place
            left = self.drop_after.pop(0) if self.drop_after else -1
            self.open_streams += 1
            self._changed.notify_all()
        while left and not self.stopping.is_set():
            event = self._event(place)
            if self.silent:
                self.stopping.wait(30)
            elif event is None:
                yield None
            else:
                place, left = place + 1, left - 1
                yield event

    def _event(self, place: int) -> dict[str, Any] | None:
        """The event at a place of the stream; None if there is none within the time between two keep-alives."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > place or self.stopping.is_set(), KEEP_ALIVE_SECONDS)
            return self.events[place] if len(self.events) > place else None


class HttpService:
    """A server of X's or Mastodon's streams, by the class of its handlers."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.feed = Feed()
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.service = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.feed.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    service: HttpService
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def feed(self) -> Feed:
        return self.server.service.feed

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def send_json(self, answer: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def is_refused(self) -> bool:
        """Refuse a stream where it is to be refused, or has no token."""
        self.feed.note_connection(self.path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.send_json({"title": "Unauthorized", "error": "The access token is invalid"}, 401)
            return True
        if self.feed.refusals:
            status, headers = self.feed.refusals.pop(0)
            self.send_json({"title": "refused"}, status, **headers)
            return True
        return False

    def send_chunks(self, chunks: Iterator[bytes], content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        # Cut off: the last chunk, which would say that all is well, never comes.
        self.close_connection = True


class XHandler(_Handler):
    """The sampled and the filtered stream. A backfill brings all that there was."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/2/tweets/search/stream/rules":
            self.feed.other_requests.append(self.path)
            self.send_json({"data": self.feed.rules, "meta": {"result_count": len(self.feed.rules)}})
        elif path in ("/2/tweets/sample/stream", "/2/tweets/search/stream"):
            if not self.is_refused():
                events = self.feed.stream(0 if "backfill_minutes" in self.query else None)
                lines = (b"\r\n" if event is None else json.dumps(event).encode() + b"\r\n" for event in events)
                self.send_chunks(lines, "application/json")
        else:
            self.send_json({"title": "Not Found"}, 404)

    def do_POST(self) -> None:
        change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        gone = change.get("delete", {}).get("ids", [])
        self.feed.rules = [rule for rule in self.feed.rules if rule["id"] not in gone]
        added = [{**rule, "id": f"new-{rule['value']}"} for rule in change.get("add", [])]
        self.feed.rules += added
        self.send_json({"data": added, "meta": {}})


class MastodonHandler(_Handler):
    """A server's public stream and timeline. Events have the form {"event", "data"}."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/v1/streaming/"):
            if not self.is_refused():
                self.send_chunks((_sse(event) for event in self.feed.stream(None)), "text/event-stream")
            return
        self.feed.other_requests.append(self.path)
        if path == "/api/v1/instance":
            streaming = self.server.service.url.replace("http", "ws")
            self.send_json({"uri": "127.0.0.1", "version": "4.3.0", "urls": {"streaming_api": streaming}})
        elif path in ("/api/v1/timelines/public", "/api/v1/timelines/tag/cats"):
            self.send_json(self._page(int(self.query["min_id"]), int(self.query["limit"])))
        else:
            self.send_json({"error": "Record not found"}, 404)

    def _page(self, min_id: int, limit: int) -> list[dict[str, Any]]:
        deleted = {event["data"] for event in self.feed.events if event["event"] == "delete"}
        statuses = [event["data"] for event in self.feed.events if event["event"] == "update"]
        shown = [status for status in statuses if int(status["id"]) > min_id and status["id"] not in deleted]
        return list(reversed(sorted(shown, key=lambda status: int(status["id"]))[:limit]))


def _sse(event: dict[str, Any] | None) -> bytes:
    if event is None:
        return b":thump\n\n"
    payload = event["data"] if isinstance(event["data"], str) else json.dumps(event["data"])
    return f"event: {event['event']}\ndata: {payload}\n\n".encode()


class Jetstream:
    """A Jetstream: from the cursor on, or from now on."""

    def __init__(self) -> None:
        self.feed = Feed()
        self._server = serve(self._send, "127.0.0.1", 0, process_request=self._refuse)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/subscribe"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.feed.stopping.set()
        self._server.shutdown()
        self._thread.join()

    def _refuse(self, connection: ServerConnection, request: Any) -> Any:
        self.feed.note_connection(request.path)
        if not self.feed.refusals:
            return None
        status, headers = self.feed.refusals.pop(0)
        answer = connection.respond(status, "refused")
        for name, value in headers.items():
            answer.headers[name] = value
        return answer

    def _send(self, connection: ServerConnection) -> None:
        query = parse_qs(urlsplit(connection.request.path).query)
        place = None
        if "cursor" in query:
            cursor = int(query["cursor"][0])
            events = self.feed.events
            place = next((at for at, event in enumerate(events) if event["time_us"] >= cursor), len(events))
        with contextlib.suppress(ConnectionClosed):
            for event in self.feed.stream(place):
                if event is not None:
                    connection.send(json.dumps(event))
                elif self.feed.silent is False:
                    connection.ping()
            connection.socket.close()


SERVICES = {
    "x": lambda: HttpService(XHandler),
    "mastodon": lambda: HttpService(MastodonHandler),
    "bluesky": Jetstream,
}
TOKENS = {"X_BEARER_TOKEN": TOKEN, "MASTODON_ACCESS_TOKEN": TOKEN}


# --- invented events of the services' form --------------------------------------------------------------------------

FIRST_MS = 1_900_000_000_000


def event_of(source: str, number: int, *, text: str = "a quite long text of a good day", photo: bool = True) -> Any:
    return {"x": x_line, "mastodon": mastodon_update, "bluesky": jetstream_create}[source](number, text, photo)


def id_of(source: str, number: int) -> str:
    """The id that a post of `event_of` has."""
    if source == "bluesky":
        return f"did:plc:author{number}/rkey{number}"
    return str((FIRST_MS + 1000 * number) << 16) if source == "mastodon" else str(1_000_000 + number)


def x_line(number: int, text: str, photo: bool) -> dict[str, Any]:
    tweet: dict[str, Any] = {
        "id": id_of("x", number),
        "text": f"{text} {number}",
        "author_id": str(number),
        "lang": "en",
        "created_at": "2026-01-02T03:04:05.000Z",
    }
    line: dict[str, Any] = {"data": tweet}
    if photo:
        tweet["attachments"] = {"media_keys": [f"3_{number}"]}
        media = {"media_key": f"3_{number}", "type": "photo", "url": f"https://pbs.example.org/{number}.jpg"}
        line["includes"] = {"media": [media]}
    return line


def mastodon_update(number: int, text: str, photo: bool) -> dict[str, Any]:
    attachment = {"id": str(number), "type": "image", "url": f"https://files.example.org/{number}.jpg"}
    status = {
        "id": id_of("mastodon", number),
        "created_at": "2026-01-02T03:04:05.678Z",
        "in_reply_to_id": None,
        "reblog": None,
        "visibility": "public",
        "language": "en",
        "content": f"<p>{text} {number}</p>",
        "account": {"id": str(number), "acct": f"author{number}"},
        "media_attachments": [attachment] if photo else [],
    }
    return {"event": "update", "data": status}


def jetstream_create(number: int, text: str, photo: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "$type": "app.bsky.feed.post",
        "text": f"{text} {number}",
        "langs": ["en"],
        "createdAt": "2026-01-02T03:04:05.678Z",
    }
    if photo:
        blob = {"$type": "blob", "ref": {"$link": f"bafkrei{number}"}, "mimeType": "image/jpeg", "size": 1}
        record["embed"] = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
    return _jetstream_commit(number, "create", {"record": record, "cid": f"bafyrei{number}"})


def deletion_of(source: str, number: int, at: int) -> dict[str, Any]:
    """The event that post `number` was deleted, at the place of the stream where post `at` would be."""
    if source == "mastodon":
        return {"event": "delete", "data": id_of("mastodon", number)}
    return _jetstream_commit(number, "delete", {}) | {"time_us": (FIRST_MS + 1000 * at) * 1000}


def account_deletion(number: int, at: int) -> dict[str, Any]:
    author = f"did:plc:author{number}"
    time_us = (FIRST_MS + 1000 * at) * 1000
    account = {"active": False, "did": author, "seq": 1, "status": "deleted", "time": "2026-01-02T03:04:05.678Z"}
    return {"did": author, "time_us": time_us, "kind": "account", "account": account}


def _jetstream_commit(number: int, operation: str, more: dict[str, Any]) -> dict[str, Any]:
    commit = {"rev": "1", "operation": operation, "collection": "app.bsky.feed.post", "rkey": f"rkey{number}", **more}
    time_us = (FIRST_MS + 1000 * number) * 1000
    return {"did": f"did:plc:author{number}", "time_us": time_us, "kind": "commit", "commit": commit}
