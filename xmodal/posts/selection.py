"""Which posts are labelled at all: the rules, and how many posts each of them left out."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

from shards.checks import require_range
from shards.errors import ConfigError
from xmodal.posts.post import Post, PostKind
from xmodal.posts.readers import PostRecord


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which posts are labelled; by default all. The others are counted by the rule that left them out."""

    languages: list[str] | None = None
    """Codes such as `en`, which is also en-GB; posts of other languages, or of none that is known, are left out."""
    min_words: int = 0
    r"""Fewest words (matches of `\w+`, links and names included). The paper's crawl kept posts of 6 and more."""
    photos_only: bool = False
    """Leave out posts without any photo. Other media of a post that has one are listed among the failures."""
    kinds: list[PostKind] = field(default_factory=lambda: list(get_args(PostKind)))
    """Kinds to keep, of `post`, `repost`, `reply` and `quote`. Others' words may stand in all but the first."""
    created_after: str | None = None
    """First day or moment (ISO 8601, UTC unless it says otherwise), such as 2022-04-01."""
    created_before: str | None = None
    """First day or moment that is too late."""

    def __post_init__(self) -> None:
        require_range(self, "min_words", least=0)
        if not self.kinds:
            raise ConfigError("kinds", self.kinds, "keeps no post")
        for key in ("created_after", "created_before"):
            value = getattr(self, key)
            if value is not None and _moment(value) is None:
                raise ConfigError(key, value, "must be a day or moment such as 2022-04-01 or 2022-04-01T12:00:00Z")


def rejection(post: Post, config: SelectConfig) -> str | None:
    """The rule that leaves a post out; None for one to keep.

    A kind that is not kept is named itself; the others are `language`, `too_few_words`, `not_a_photo`, `too_early`,
    `too_late`, and `no_date` where only the time of a post could tell.
    """
    if post.kind not in config.kinds:
        return post.kind
    if config.languages is not None and not _speaks(post.lang, config.languages):
        return "language"
    if len(re.findall(r"\w+", post.text)) < config.min_words:
        return "too_few_words"
    if config.photos_only and all(media.type != "photo" for media in post.media):
        return "not_a_photo"
    return _time_rejection(post, config)


def selected(records: Iterable[PostRecord], config: SelectConfig, rejected: "Counter[str]") -> Iterator[PostRecord]:
    """The records without the posts that a rule leaves out, which `rejected` counts; what is no post stays."""
    for record in records:
        rule = rejection(record.post, config) if record.post else None
        if rule is None:
            yield record
        else:
            rejected[rule] += 1


def _speaks(lang: str | None, languages: list[str]) -> bool:
    spoken = (lang or "").lower().replace("_", "-")
    return any(spoken == code.lower() or spoken.startswith(f"{code.lower()}-") for code in languages)


def _time_rejection(post: Post, config: SelectConfig) -> str | None:
    first = _moment(config.created_after) if config.created_after else None
    end = _moment(config.created_before) if config.created_before else None
    if first is None and end is None:
        return None
    created = _moment(post.created_at) if post.created_at else None
    if created is None:
        return "no_date"
    if first is not None and created < first:
        return "too_early"
    return "too_late" if end is not None and created >= end else None


def _moment(text: str) -> datetime | None:
    """A time of ISO 8601, or seconds since 1970; None for another."""
    try:
        moment = datetime.fromtimestamp(float(text), UTC) if _SECONDS.fullmatch(text) else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_SECONDS = re.compile(r"\d{9,11}(\.\d+)?")
