"""Mastodon: the public stream of a server by Mastodon.py, and its timeline for what a gap left out.

Edits are not followed: a post is what it was when it came. Deletions that happen during a gap are not told afterwards.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import requests
from mastodon import Mastodon, StreamListener
from mastodon.errors import MastodonError

from xmodal.collecting.arrivals import Arrival, Cursor, StreamEndedError
from xmodal.collecting.requests_session import WatchedSession
from xmodal.collecting.services import MASTODON_TOKEN, MastodonConfig
from xmodal.posts.mastodon import mastodon_post
from xmodal.posts.post import Post, UnreadablePostError

log = logging.getLogger(__name__)

PAGE = 40
"""Most statuses that a server gives at a time."""
# Ids of statuses are milliseconds since 1970, followed by 16 bits; those of servers before 2017 are small numbers.
_ID_BITS = 16
_FIRST_TIMED_ID = 10**12 << _ID_BITS


class MastodonStream:
    """The public stream of one server."""

    def __init__(self, config: MastodonConfig, token: str, stall_seconds: float) -> None:
        self._config, self._token, self._stall_seconds = config, token, stall_seconds

    def follow(self, cursor: Cursor, deliver: Callable[[Arrival], None], stopping: threading.Event) -> None:
        """As a Source does. The cursor is the newest id that came."""
        session = WatchedSession(token_variable=MASTODON_TOKEN, timeout=self._stall_seconds)
        client = Mastodon(
            access_token=self._token,
            api_base_url=self._config.endpoint,
            ratelimit_method="throw",
            request_timeout=self._stall_seconds,
            session=session,
            user_agent="xmodal",
        )
        newest = str(cursor.get("last_id", ""))
        listener = _Listener(newest, deliver, stopping, lambda last_id: self._pages(client, last_id))
        try:
            if self._config.hashtag:
                client.stream_hashtag(
                    self._config.hashtag, listener, local=self._config.local, timeout=self._stall_seconds
                )
            else:
                client.stream_public(listener, local=self._config.local, timeout=self._stall_seconds)
        # UnboundLocalError: what Mastodon.py makes of a server that does not say where it streams.
        except (MastodonError, requests.RequestException, UnboundLocalError) as error:
            # The client's errors may quote what the server sent; their type says enough.
            raise session.refusal or StreamEndedError(f"connection lost: {type(error).__name__}") from error
        raise StreamEndedError("closed by the server")

    def _pages(self, client: Mastodon, last_id: str) -> Iterator[list[Any]]:
        """The statuses after `last_id`, oldest first."""
        min_id = rewound_id(last_id, self._config.rewind_seconds)
        while True:
            where = {"min_id": min_id, "limit": PAGE, "local": self._config.local}
            if self._config.hashtag:
                page = client.timeline_hashtag(self._config.hashtag, **where)
            else:
                page = client.timeline_public(**where)
            if not page:
                return
            yield list(reversed(page))
            # A server that minds no min_id would give the same page for ever.
            if not is_newer(str(page[0]["id"]), min_id):
                return
            min_id = str(page[0]["id"])


class _Listener(StreamListener):
    """Reads events as the server sent them: Mastodon.py would make other types of their fields, a byte at a time."""

    def __init__(
        self,
        newest: str,
        deliver: Callable[[Arrival], None],
        stopping: threading.Event,
        pages: Callable[[str], Iterator[list[Any]]],
    ) -> None:
        self._newest, self._deliver, self._stopping, self._pages = newest, deliver, stopping, pages

    def handle_stream(self, response: requests.Response) -> None:
        """Catch up, then read the stream. It is open by now, so that nothing falls between the two."""
        if self._newest:
            for page in self._pages(self._newest):
                for status in page:
                    self._deliver_status(plain_status(status))
                if self._stopping.is_set():
                    return
        event, payload = "", ""
        for line in response.iter_lines():
            if self._stopping.is_set():
                return
            name, _, value = line.decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if not line:
                self._take(event, payload)
                event, payload = "", ""
            elif name == "event":
                event = value
            elif name == "data":
                payload += value

    def _take(self, event: str, payload: str) -> None:
        if event == "delete" and payload.strip():
            self._deliver(Arrival(deleted_post=payload.strip(), cursor=self._cursor()))
        if event != "update":
            return
        try:
            status = json.loads(payload)
        except (ValueError, RecursionError):
            log.warning("mastodon: an event that is not JSON was left out")
            return
        self._deliver_status(status)

    def _deliver_status(self, status: Any) -> None:
        post: Post | UnreadablePostError
        try:
            post = mastodon_post(status)
        except UnreadablePostError as error:
            post = error
        post_id = status.get("id") if isinstance(status, Mapping) else None
        if isinstance(post_id, str) and is_newer(post_id, self._newest):
            self._newest = post_id
        self._deliver(Arrival(post=post, cursor=self._cursor()))

    def _cursor(self) -> Cursor:
        return {"last_id": self._newest} if self._newest else {}


def plain_status(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status of Mastodon.py with its id and time as the server wrote them."""
    plain = dict(status) | {"id": str(status["id"])}
    moment = plain.get("created_at")
    if isinstance(moment, datetime):
        utc = moment.astimezone(UTC)
        plain["created_at"] = f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"
    return plain


def is_newer(post_id: str, than: str) -> bool:
    """Whether an id was given out later; longer numbers are larger ones, and some servers have letters in theirs."""
    return (len(post_id), post_id) > (len(than), than)


def rewound_id(post_id: str, seconds: float) -> str:
    """The id that a post of so many seconds earlier would have; the same one where ids hold no time."""
    if not post_id.isdecimal() or int(post_id) < _FIRST_TIMED_ID:
        return post_id
    return str(int(post_id) - (int(seconds * 1000) << _ID_BITS))
