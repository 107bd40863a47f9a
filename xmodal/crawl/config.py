"""How pictures are fetched: limits, manners, and who asks."""

import re
from dataclasses import dataclass, field

import xmodal
from shards.checks import require_range
from shards.errors import ConfigError
from xmodal.crawl.guard import AddressGuard, parse_networks

USER_AGENT_NAME = "xmodal"
"""By which hosts may address us, such as in `X-Robots-Tag: xmodal: noai`."""
# Printable ASCII without what would end the comment of a header that they stand in.
_CONTACT = re.compile(r"https?://[!-'*-\[\]-~]+|[!-'*-?A-\[\]-~]+@[!-'*-?A-\[\]-~]+")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How pictures are fetched. The limits hold for one unit."""

    max_concurrent: int = 128
    """Requests of one unit at a time, to all hosts together."""
    max_tries: int = 3
    """Tries for one picture, first included. Only retryable failures use them, and none that is its host's as a whole.
    """
    backoff_seconds: float = 0.5
    """Longest wait before the second try; doubled for each further one. The wait itself is drawn from 0 to it."""
    max_backoff_seconds: float = 30.0
    """No wait is longer."""
    max_seconds_per_picture: float = 180.0
    """All tries of a picture and the waits between them; waiting for its host's turn does not count."""
    connect_seconds: float = 10.0
    """Longest wait for a connection."""
    idle_seconds: float = 20.0
    """Longest silence of a host: until the first byte of its answer, and between any two."""
    total_seconds: float = 60.0
    """Longest time for one try, redirects and body included."""
    min_bytes_per_second: int = 500
    """A body that came more slowly than this over its first `idle_seconds`, or longer, is given up; 0 for any."""
    max_bytes: int = 20_000_000
    """Larger answers are dropped while reading, and while unpacking."""
    max_redirects: int = 5
    """Longer chains of redirects are given up."""
    allow_networks: list[str] = field(default_factory=list)
    """Networks that may be connected to besides the public internet, such as `10.0.0.0/8` for pictures of an intranet.
    """
    contact: str = ""
    """A web page or mail address that tells hosts who crawls them, such as `https://example.org/crawl`."""
    obey_opt_out: bool = True
    """Leave out pictures whose host says `noai` or `noimageai` in X-Robots-Tag."""

    def __post_init__(self) -> None:
        require_range(self, "max_concurrent", "max_tries", "max_bytes", least=1)
        require_range(self, "connect_seconds", "idle_seconds", "total_seconds", "max_seconds_per_picture", above=0)
        require_range(self, "backoff_seconds", "max_backoff_seconds", "max_redirects", "min_bytes_per_second", least=0)
        for network in self.allow_networks:
            try:
                parse_networks([network])
            except ValueError:
                raise ConfigError("allow_networks", network, "must be a network such as '10.0.0.0/8'") from None
        if self.contact and not _CONTACT.fullmatch(self.contact):
            raise ConfigError("contact", self.contact, "must be a web page or mail address, without spaces or brackets")

    @property
    def user_agent(self) -> str:
        """What requests say of who asks."""
        contact = f" (+{self.contact})" if self.contact else ""
        return f"{USER_AGENT_NAME}/{xmodal.__version__}{contact}"

    @property
    def guard(self) -> AddressGuard:
        """Judges what may be connected to."""
        return AddressGuard(parse_networks(self.allow_networks))
