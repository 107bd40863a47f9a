"""The settings of each service. Its token comes from the environment alone."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shards.checks import require_range
from shards.errors import ConfigError, UserError

X_TOKEN = "X_BEARER_TOKEN"
MASTODON_TOKEN = "MASTODON_ACCESS_TOKEN"


@dataclass(frozen=True, kw_only=True)
class XConfig:
    """X's sampled stream (about 1 % of all posts), or its filtered stream. The token is $X_BEARER_TOKEN."""

    endpoint: str = "https://api.x.com"
    """Where the API is."""
    rules: list[str] = field(default_factory=list)
    """Rules of the filtered stream, such as `has:images lang:en`; none for the sampled stream. They are set on the
    service under the tag `xmodal`; rules of other tags stay, and what only they match is left out."""
    backfill_minutes: int = 0
    """Minutes of posts to ask for again after a gap, at most 5; not all levels of access have it."""

    def __post_init__(self) -> None:
        require_range(self, "backfill_minutes", least=0, most=5)
        _require_url(self.endpoint, "http", "https")


@dataclass(frozen=True, kw_only=True)
class MastodonConfig:
    """The public stream of one server, or that of a hashtag. The token is $MASTODON_ACCESS_TOKEN."""

    endpoint: str = "https://mastodon.social"
    """The server. It shows what its own people post, and those of other servers whom they follow."""
    hashtag: str | None = None
    """Follow a hashtag (without `#`) instead of all public posts."""
    local: bool = False
    """Only posts of the server's own people."""
    rewind_seconds: float = 60.0
    """After a gap, begin so much earlier: posts of other servers arrive late, with ids of when they were written."""

    def __post_init__(self) -> None:
        require_range(self, "rewind_seconds", least=0)
        _require_url(self.endpoint, "http", "https")
        if self.hashtag is not None and (not self.hashtag or self.hashtag.startswith("#")):
            raise ConfigError("hashtag", self.hashtag, "must be a word without `#`")


@dataclass(frozen=True, kw_only=True)
class BlueskyConfig:
    """A Jetstream of Bluesky: all posts of the network, as JSON. It needs no token."""

    endpoint: str = "wss://jetstream2.us-east.bsky.network/subscribe"
    """Where the Jetstream is."""
    rewind_seconds: float = 5.0
    """After a gap, begin so much earlier: the clocks of two Jetstreams differ."""

    def __post_init__(self) -> None:
        require_range(self, "rewind_seconds", least=0)
        _require_url(self.endpoint, "ws", "wss")


def token(variable: str) -> str:
    """The secret in an environment variable. Raises UserError where it is not set."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"collect: ${variable} is not set", f"export {variable} with a token of the service")
    return value


def _require_url(url: str, *schemes: str) -> None:
    try:
        parts = urlsplit(url)
        if parts.username is not None:
            # Not shown: there may be a password in it.
            raise ConfigError("endpoint", f"{parts.scheme}://…@{parts.hostname}", "must be without a name or password")
        is_secure = parts.scheme == schemes[-1] or parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme in schemes and parts.hostname and is_secure:
            return
    except ValueError:
        pass
    raise ConfigError("endpoint", url, f"must be {schemes[-1]}:// and a host: tokens are not sent in clear")
