"""`Post`: one post with its pictures, and the checks that a record must pass to be one."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args
from urllib.parse import quote

from xmodal.labels import SoftLabel, parse_label

MAX_ENCODED_ID_LENGTH = 200
MAX_NUMBER_BITS = 128

PostKind = Literal["post", "repost", "reply", "quote"]

UNREADABLE = {
    "bad_json": "the line is not JSON in UTF-8",
    "bad_row": "the row of a table is broken: its quotes, its encoding, or how many fields it has",
    "bad_post": "a field is missing that every post has, or of another type",
    "no_text": "the post has no words",
    "no_media": "the post has no picture",
    "media_not_included": "the page names the post's pictures, and holds none of them",
    "no_label": "the post came without a label, or with one that is none, and `teacher.kind` is `given`",
    "not_a_post": "what stands where a post would: deleted, blocked, or something else",
    "not_public": "the author did not show it to everyone",
    "duplicate_post": "another record of the input has its id",
}
"""Why a record is no post: the codes of the failures file, and what each means."""


class UnreadablePostError(Exception):
    """A record that is no post. `reason` is a key of UNREADABLE; `detail` names the field, and shows nothing of it.

    `post_id` and `author` are there to be forgotten by, where the record names them.
    """

    def __init__(self, reason: str, detail: str, post_id: str | None = None, author: str | None = None) -> None:
        assert reason in UNREADABLE, reason
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.post_id, self.author = reason, detail, post_id, author


@dataclass(frozen=True, kw_only=True)
class Media:
    """One picture of a post."""

    url: str
    """Absolute, or relative to the config's `base_url`; empty where the record names none: the fetcher refuses it."""
    type: str = "photo"
    """`photo`, or what else the service says that it is: `video`, `animated_gif`, …; `missing` where a page does not
    include what it names."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """One post. Its text is personal data and hostile input: never log it."""

    id: str
    text: str
    """Empty only where the input has labels instead of texts."""
    media: tuple[Media, ...]
    lang: str | None = None
    created_at: str | None = None
    author: str | None = None
    source: str | None = None
    """Where the post is from: of the services, `x`, `mastodon` or `bluesky`."""
    kind: PostKind = "post"
    """What it is besides: somebody's post shown again, an answer, or words around another post. A repost that answers
    counts as a repost, an answer that quotes as a reply."""
    label: SoftLabel | None = None
    """What somebody has said of it before; the teacher `given` takes that. None too for what is no label of ours."""

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
    post_id = _optional_text(raw_id) if isinstance(raw_id, str | int) else None
    if not post_id:
        raise UnreadablePostError("bad_post", "id: missing, or neither text nor a whole number")
    if len(encode_id(post_id)) > MAX_ENCODED_ID_LENGTH:
        raise UnreadablePostError("bad_post", f"id: longer than {MAX_ENCODED_ID_LENGTH} characters")
    author = _optional_text(record.get("author"))
    text = record.get("text")
    if text is not None and not isinstance(text, str):
        raise UnreadablePostError("bad_post", "text: not text", post_id, author)
    if not text or not text.strip():
        raise UnreadablePostError("no_text", "text: missing or empty", post_id, author)
    media = _parse_media(record.get("media"), post_id, author)
    optional = {name: _optional_text(record.get(name)) for name in ("lang", "created_at", "source")}
    return Post(
        id=post_id,
        text=_clean(text),
        media=media,
        author=author,
        kind=_parse_kind(record.get("kind"), post_id, author),
        label=parse_label(record.get("label")),
        **optional,
    )


def post_record(post: Post) -> dict[str, Any]:
    """The record of a post, as a line of JSONL holds it: `parse_post` makes the same post of it."""
    record = asdict(post) | {"media": [asdict(media) for media in post.media]}
    return {name: value for name, value in record.items() if value is not None}


def _parse_media(records: Any, post_id: str, author: str | None) -> tuple[Media, ...]:
    if records is None or records == []:
        raise UnreadablePostError("no_media", "media: missing or empty", post_id, author)
    if not isinstance(records, list):
        raise UnreadablePostError("bad_post", "media: not a list", post_id, author)
    return tuple(_parse_entry(entry) for entry in records)


def _parse_entry(entry: Any) -> Media:
    """One entry of `media`. A broken one loses no neighbour: it keeps its place, with no URL."""
    record = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(record, Mapping):
        return Media(url="")
    url, kind = record.get("url"), record.get("type", "photo")
    return Media(url=_clean(url) if isinstance(url, str) else "", type=kind if isinstance(kind, str) else "unknown")


def _parse_kind(value: Any, post_id: str, author: str | None) -> PostKind:
    """A kind that is not known is no detail that a post can do without: those who leave out reposts rely on it."""
    for kind in get_args(PostKind):
        if value == kind:
            return kind
    if value is None:
        return "post"
    raise UnreadablePostError("bad_post", f"kind: not one of {', '.join(get_args(PostKind))}", post_id, author)


def _optional_text(value: Any) -> str | None:
    """What a post can do without: text, or a number as text; None for anything else."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Python refuses to write whole numbers of thousands of digits, and they are nobody's id or time.
    return None if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS else str(value)


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON may escape half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
