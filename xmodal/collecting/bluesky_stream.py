"""Bluesky: a Jetstream (version 1), which is a plain websocket of JSON.

Read by `websockets`: the SDK of the AT Protocol (atproto 0.0.73) follows the signed firehose, which is many times the
bytes, and Jetstreams of version 2 alone.
"""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from xmodal.collecting.arrivals import Arrival, Cursor, StreamEndedError
from xmodal.collecting.refusals import raise_for_status
from xmodal.collecting.services import BlueskyConfig
from xmodal.posts.bluesky import COLLECTION, bluesky_posts
from xmodal.posts.untrusted import as_object

log = logging.getLogger(__name__)

_MAX_EVENT_BYTES = 4 << 20


class BlueskyStream:
    """All posts of the network, by a Jetstream."""

    def __init__(self, config: BlueskyConfig, stall_seconds: float) -> None:
        self._config, self._stall_seconds = config, stall_seconds

    def follow(self, cursor: Cursor, deliver: Callable[[Arrival], None], stopping: threading.Event) -> None:
        """As a Source does. The cursor is the time of the last event, in microseconds."""
        url = stream_url(self._config, cursor)
        try:
            with connect(url, open_timeout=self._stall_seconds, max_size=_MAX_EVENT_BYTES, close_timeout=1) as socket:
                while not stopping.is_set():
                    message = socket.recv(timeout=self._stall_seconds)
                    self._take(message, deliver)
        except InvalidStatus as error:
            answer = error.response
            raise_for_status(answer.status_code, answer.headers, url=self._config.endpoint, token_variable=None)
            raise StreamEndedError(f"answered {answer.status_code}") from error
        except ConnectionClosed as error:
            raise StreamEndedError("connection closed") from error
        except TimeoutError as error:
            raise StreamEndedError("silent for too long") from error
        except (WebSocketException, OSError) as error:
            raise StreamEndedError(f"no connection: {type(error).__name__}") from error

    def _take(self, message: str | bytes, deliver: Callable[[Arrival], None]) -> None:
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            log.warning("bluesky: an event that is not JSON was left out")
            return
        for arrival in event_arrivals(event):
            deliver(arrival)


def stream_url(config: BlueskyConfig, cursor: Cursor) -> str:
    """Where to connect to get the posts from the cursor on, and a little before."""
    wanted: dict[str, Any] = {"wantedCollections": COLLECTION}
    if "time_us" in cursor:
        wanted["cursor"] = int(cursor["time_us"]) - int(config.rewind_seconds * 1e6)
    joint = "&" if "?" in config.endpoint else "?"
    return f"{config.endpoint}{joint}{urlencode(wanted)}"


def event_arrivals(event: Any) -> list[Arrival]:
    """What an event of a Jetstream delivers."""
    fields = as_object(event)
    time_us, author = fields.get("time_us"), fields.get("did")
    if isinstance(time_us, bool) or not isinstance(time_us, int) or not isinstance(author, str):
        return []
    cursor: Cursor = {"time_us": time_us}
    commit, account = as_object(fields.get("commit")), as_object(fields.get("account"))
    if commit.get("operation") == "delete" and commit.get("collection") == COLLECTION:
        return [Arrival(deleted_post=f"{author}/{commit.get('rkey')}", cursor=cursor)]
    if fields.get("kind") == "account" and account.get("status") == "deleted":
        return [Arrival(deleted_author=author, cursor=cursor)]
    return [Arrival(post=post, cursor=cursor) for post in bluesky_posts(event)] or [Arrival(cursor=cursor)]
