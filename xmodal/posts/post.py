"""`Post`: one post with its pictures, and the checks that a record must pass to be one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

MAX_ENCODED_ID_LENGTH = 200


class UnreadablePostError(Exception):
    """A record that is no post. `reason` is one of the codes of the failures file."""

    def __init__(self, reason: str, detail: str, post_id: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.post_id = reason, detail, post_id


@dataclass(frozen=True, kw_only=True)
class Media:
    """One picture of a post."""

    url: str
    """Absolute, or relative to the config's `base_url`; empty where the record names none: the fetcher refuses it."""
    type: str = "photo"


@dataclass(frozen=True, kw_only=True)
class Post:
    """One post. Its text is personal data and hostile input: never log it."""

    id: str
    text: str
    media: tuple[Media, ...]
    lang: str | None = None
    created_at: str | None = None
    author: str | None = None
    source: str | None = None

    def key(self, media_number: int) -> str:
        """The sample key of a picture: `<post id>-<media number>`, percent-encoded where WebDataset needs it."""
        return f"{encode_id(self.id)}-{media_number}"


def encode_id(post_id: str) -> str:
    """A post id as part of a file name: letters, digits, `_` and `-` stay, all else becomes `%XX`.

    The dot too: WebDataset takes all that follows a name's first dot for its extension.
    """
    return re.sub(r"[.~]", lambda match: f"%{ord(match.group()):02X}", quote(post_id, safe=""))


def parse_post(record: Any) -> Post:
    """A post from a decoded record. Raises UnreadablePostError with the reason `bad_post`, `no_text` or `no_media`."""
    if not isinstance(record, Mapping):
        raise UnreadablePostError("bad_post", "not an object")
    raw_id = record.get("id")
    if isinstance(raw_id, bool) or not isinstance(raw_id, str | int) or raw_id == "":
        raise UnreadablePostError("bad_post", "id: missing, or neither text nor a whole number")
    post_id = _clean(str(raw_id))
    if len(encode_id(post_id)) > MAX_ENCODED_ID_LENGTH:
        raise UnreadablePostError("bad_post", f"id: longer than {MAX_ENCODED_ID_LENGTH} characters")
    text = record.get("text")
    if text is not None and not isinstance(text, str):
        raise UnreadablePostError("bad_post", "text: not text", post_id)
    if not text or not text.strip():
        raise UnreadablePostError("no_text", "text: missing or empty", post_id)
    media = _parse_media(record.get("media"), post_id)
    optional = {name: _optional_text(record.get(name)) for name in ("lang", "created_at", "author", "source")}
    return Post(id=post_id, text=_clean(text), media=media, **optional)


def _parse_media(records: Any, post_id: str) -> tuple[Media, ...]:
    if records is None or records == []:
        raise UnreadablePostError("no_media", "media: missing or empty", post_id)
    if not isinstance(records, list):
        raise UnreadablePostError("bad_post", "media: not a list", post_id)
    return tuple(_parse_entry(entry) for entry in records)


def _parse_entry(entry: Any) -> Media:
    """One entry of `media`. A broken one loses no neighbour: it keeps its place, with no URL."""
    record = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(record, Mapping):
        return Media(url="")
    url, kind = record.get("url"), record.get("type", "photo")
    return Media(url=_clean(url) if isinstance(url, str) else "", type=kind if isinstance(kind, str) else "unknown")


def _optional_text(value: Any) -> str | None:
    """What a post can do without: text, or a number as text; None for anything else."""
    if isinstance(value, str):
        return _clean(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON may escape half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
