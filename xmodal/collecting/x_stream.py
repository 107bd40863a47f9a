"""X: the sampled stream, or the filtered one where rules are given, by tweepy's StreamingClient.

These streams announce no deletions: X sends them to its compliance streams, which need an agreement of their own.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests
import tweepy
from tweepy.streaming import StreamRule

from shards.errors import UserError
from xmodal.collecting.arrivals import Arrival, Cursor, StreamEndedError
from xmodal.collecting.requests_session import WatchedSession
from xmodal.collecting.services import X_TOKEN, XConfig
from xmodal.posts.untrusted import as_list, as_object
from xmodal.posts.x import x_posts

log = logging.getLogger(__name__)

TAG = "xmodal"
"""Of the rules that are ours."""
_TWEEPYS_ADDRESS = "https://api.twitter.com"

# What the paper asked for.
_WANTED = {
    "expansions": ["attachments.media_keys", "referenced_tweets.id", "author_id"],
    "media_fields": ["url", "type", "media_key"],
    "tweet_fields": ["lang", "created_at", "id", "text", "note_tweet", "referenced_tweets"],
}


class XStream:
    """One of X's streams."""

    def __init__(self, config: XConfig, token: str, stall_seconds: float) -> None:
        self._config, self._token, self._stall_seconds = config, token, stall_seconds

    def follow(self, cursor: Cursor, deliver: Callable[[Arrival], None], stopping: threading.Event) -> None:
        """As a Source does. The cursor is when the last post came; what lies further back than `backfill_minutes`,
        X does not send again."""
        client = _Client(self._token, deliver, stopping, only_tagged=bool(self._config.rules))
        client.session = WatchedSession(
            token_variable=X_TOKEN, timeout=self._stall_seconds, moved=(_TWEEPYS_ADDRESS, self._config.endpoint)
        )
        wanted: dict[str, Any] = dict(_WANTED)
        minutes = self._backfill_minutes(cursor)
        if minutes:
            wanted["backfill_minutes"] = minutes
        if self._config.rules:
            self._set_rules(client)
            client.filter(**wanted)
        else:
            client.sample(**wanted)
        if isinstance(client.end, requests.RequestException):
            raise StreamEndedError(f"connection lost: {type(client.end).__name__}") from client.end
        raise client.end or StreamEndedError("closed by the server")

    def _backfill_minutes(self, cursor: Cursor) -> int:
        if not cursor or not self._config.backfill_minutes:
            return 0
        return backfill_minutes(time.time() - float(cursor["received_at"]), self._config.backfill_minutes)

    def _set_rules(self, client: "_Client") -> None:
        """Make ours those of the config; the rules of others stay."""
        try:
            answer = client.get_rules()
            ours = {rule.value: rule.id for rule in answer.data or [] if rule.tag == TAG}
            surplus = [rule_id for value, rule_id in ours.items() if value not in self._config.rules]
            missing = [StreamRule(value=value, tag=TAG) for value in self._config.rules if value not in ours]
            if surplus:
                client.delete_rules(surplus)
            if missing:
                errors = client.add_rules(missing).errors
                if errors:
                    problem = as_object(errors[0]).get("title")
                    raise UserError(f"x.rules: X refuses a rule: {problem}", "change x.rules in the config")
        except requests.RequestException as error:
            raise StreamEndedError(f"no connection: {type(error).__name__}") from error


def backfill_minutes(gap_seconds: float, most: int) -> int:
    """Whole minutes to ask for again after a gap; one more than it, since the clock of X is another."""
    return min(most, math.ceil(max(0.0, gap_seconds) / 60) + 1)


class _Client(tweepy.StreamingClient):
    """Makes one connection, and keeps why it ended as `end`; tweepy itself would connect again, without a backfill."""

    def __init__(
        self, token: str, deliver: Callable[[Arrival], None], stopping: threading.Event, *, only_tagged: bool
    ) -> None:
        super().__init__(token)
        self.end: Exception | None = None
        self._deliver, self._stopping, self._only_tagged = deliver, stopping, only_tagged
        self._connections = 0

    def on_connect(self) -> None:
        self._connections += 1
        if self._connections > 1:
            self.disconnect()

    def on_data(self, raw_data: bytes) -> None:
        if self._stopping.is_set():
            self.disconnect()
            return
        try:
            line = json.loads(raw_data)
        except (ValueError, RecursionError):
            log.warning("x: a line that is not JSON was left out")
            return
        record = as_object(line)
        if "data" not in record and record.get("errors"):
            # Of a post with data, errors only say what could not be included.
            raise StreamEndedError(f"X: {as_object(as_list(record['errors'])[:1][0]).get('title')}")
        if self._only_tagged and not _has_our_tag(record):
            return
        for post in x_posts(line):
            self._deliver(Arrival(post=post, cursor={"received_at": time.time()}))

    def on_keep_alive(self) -> None:
        if self._stopping.is_set():
            self.disconnect()

    def on_request_error(self, status_code: int) -> None:
        self.disconnect()

    def on_connection_error(self) -> None:
        self.end = StreamEndedError("connection lost, or silent for too long")
        self.disconnect()

    def on_closed(self, response: Any) -> None:
        self.disconnect()

    def on_exception(self, exception: Exception) -> None:
        self.end = exception

    def on_disconnect(self) -> None:
        pass


def _has_our_tag(record: Mapping[str, Any]) -> bool:
    return any(as_object(rule).get("tag") == TAG for rule in as_list(record.get("matching_rules")))
