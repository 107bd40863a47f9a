"""Mastodon statuses → posts, of any server that speaks its API."""

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

from xmodal.posts.post import Post, UnreadablePostError, parse_post
from xmodal.posts.untrusted import as_object

MAX_HTML_LENGTH = 100_000
"""Servers allow some thousands of characters."""
# What opens no tag, and comments and declarations, which no status holds: Python's parser would look for the end of
# each through all that follows, and take minutes over what was made to take long.
_NO_TAG = re.compile(r"<(?=[!?]|[^<>]*(?:<|\Z))")


def mastodon_posts(record: Any) -> Iterator[Post | UnreadablePostError]:
    """The posts of a status, a page of statuses, or an event of a stream; for each that cannot be used, why.

    Events of other things than statuses give none.
    """
    if isinstance(record, Mapping) and "event" in record:
        if record["event"] not in ("update", "status.update"):
            return
        try:
            record = json.loads(str(record.get("payload")))
        except (ValueError, RecursionError):
            yield UnreadablePostError("bad_json", "payload: not JSON")
            return
    for status in record if isinstance(record, list) else [record]:
        try:
            yield mastodon_post(status)
        except UnreadablePostError as error:
            yield error


def mastodon_post(record: Any) -> Post:
    """The post that a status is. Raises UnreadablePostError.

    A boost has the words and pictures of what it shows, under its own id and author. The text is what a reader sees:
    links and mentions as they are written, a new line for each paragraph and break.
    """
    if not isinstance(record, Mapping):
        raise UnreadablePostError("bad_post", "not an object")
    if "content" not in record:
        raise UnreadablePostError("not_a_post", "content: missing")
    shown = as_object(record.get("reblog")) or record
    post_id = record.get("id")
    post_id = post_id if isinstance(post_id, str) else None
    author = as_object(record.get("account")).get("acct")
    named = (post_id, author if isinstance(author, str) else None)
    for status in (record, shown):
        if status.get("visibility") not in ("public", "unlisted"):
            raise UnreadablePostError("not_public", "visibility: neither public nor unlisted", *named)
    return parse_post(
        {
            "id": record.get("id"),
            "text": _plain_text(shown.get("content"), *named),
            "media": _media(shown.get("media_attachments")),
            "lang": shown.get("language"),
            "created_at": record.get("created_at"),
            "author": author,
            "source": "mastodon",
            "kind": _kind(record),
        }
    )


def _kind(status: Mapping[str, Any]) -> str:
    if status.get("reblog") is not None:
        return "repost"
    if status.get("in_reply_to_id") is not None:
        return "reply"
    return "quote" if status.get("quote") is not None else "post"


def _media(attachments: Any) -> Any:
    return [_media_entry(entry) for entry in attachments] if isinstance(attachments, list) else attachments


def _media_entry(attachment: Any) -> Any:
    if not isinstance(attachment, Mapping):
        return attachment
    kind = attachment.get("type")
    return {
        # Its own copy; where a server keeps none of other servers' files, theirs.
        "url": attachment.get("url") or attachment.get("remote_url"),
        "type": "photo" if kind == "image" else kind,
    }


def _plain_text(content: Any, post_id: str | None, author: str | None) -> Any:
    if not isinstance(content, str):
        return content
    if len(content) > MAX_HTML_LENGTH:
        detail = f"content: longer than {MAX_HTML_LENGTH} characters"
        raise UnreadablePostError("bad_post", detail, post_id, author)
    reader = _TextOfHtml()
    reader.feed(_NO_TAG.sub("&lt;", content))
    reader.close()
    return reader.text()


class _TextOfHtml(HTMLParser):
    """The words of a status, as a reader sees them."""

    _LINES = frozenset({"p", "br", "div", "li", "ul", "ol", "blockquote", "pre", "h1", "h2", "h3", "h4", "h5", "h6"})
    _UNSEEN = frozenset({"script", "style"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._unseen: str | None = None
        """The tag whose content is left out at the moment."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        # `quote-inline` repeats the link to the quoted status, for clients that know no quotes.
        if self._unseen is None and (tag in self._UNSEEN or "quote-inline" in classes):
            self._unseen = tag
        if tag in self._LINES:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._unseen:
            self._unseen = None
        if tag in self._LINES:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._unseen is None:
            self._parts.append(re.sub(r"[ \t\r\n\f]+", " ", data))

    def text(self) -> str:
        lines = "".join(self._parts).split("\n")
        return "\n".join(line for line in (re.sub(" +", " ", line).strip() for line in lines) if line)
