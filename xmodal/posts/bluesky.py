"""Bluesky → posts: events of a Jetstream, and what the AppView answers (posts, feeds, searches, threads).

An event holds the record as its author's server has it, with pictures by the hashes of their content; the AppView adds
their addresses.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from xmodal.posts.post import Post, UnreadablePostError, parse_post
from xmodal.posts.untrusted import as_list, as_object

COLLECTION = "app.bsky.feed.post"
PICTURE_URL = "https://cdn.bsky.app/img/feed_fullsize/plain/{did}/{cid}@jpeg"


def bluesky_posts(record: Any) -> Iterator[Post | UnreadablePostError]:
    """The posts of an event or an answer, in its order; for each that cannot be used, why.

    Events of other things (likes, follows, deletions, accounts) give none. Of a thread, the parents come first, then
    the post, then its replies. A post's id is `<did>/<record key>`: `at://<did>/app.bsky.feed.post/<record key>`.
    """
    if not isinstance(record, Mapping):
        yield UnreadablePostError("bad_post", "not an object")
        return
    is_event = "did" in record and "kind" in record
    yield from _event_posts(record) if is_event else _answer_posts(record)


def _event_posts(event: Mapping[str, Any]) -> Iterator[Post | UnreadablePostError]:
    commit = as_object(event.get("commit"))
    if commit.get("operation") == "create" and commit.get("collection") == COLLECTION:
        yield _post_or_error(event["did"], commit.get("rkey"), commit.get("record"), view=None, reposted=False)


def _answer_posts(answer: Mapping[str, Any]) -> Iterator[Post | UnreadablePostError]:
    if "feed" in answer or "posts" in answer:
        entries = answer["feed"] if "feed" in answer else answer["posts"]
        if not isinstance(entries, list):
            yield UnreadablePostError("bad_post", "feed, posts: not a list")
            return
        for entry in entries:
            yield _view_post(entry)
    elif "thread" in answer or "replies" in answer or "parent" in answer:
        yield from _thread_posts(answer.get("thread", answer))
    else:
        yield _view_post(answer)


def _thread_posts(thread: Any) -> Iterator[Post | UnreadablePostError]:
    above = []
    node = thread
    while isinstance(node, Mapping) and node.get("parent") is not None:
        node = node["parent"]
        above.append(node)
    for parent in reversed(above):
        yield _view_post(parent)
    # No recursion: how deep a thread goes, strangers decide.
    waiting = [thread]
    while waiting:
        node = waiting.pop()
        yield _view_post(node)
        waiting.extend(reversed(as_list(as_object(node).get("replies"))))


def _view_post(view: Any) -> Post | UnreadablePostError:
    """A post as the AppView shows it, bare or as the entry of a feed or thread, with its `post` inside."""
    reposted = False
    if isinstance(view, Mapping) and "post" in view:
        reposted = as_object(view.get("reason")).get("$type") == "app.bsky.feed.defs#reasonRepost"
        view = view["post"]
    if not isinstance(view, Mapping):
        return UnreadablePostError("bad_post", "not an object")
    uri = view.get("uri")
    place = re.fullmatch(rf"at://([^/]+)/{re.escape(COLLECTION)}/([^/]+)", uri) if isinstance(uri, str) else None
    if place is None:
        return UnreadablePostError("not_a_post", "uri: missing, or not that of a post")
    did, record_key = place.groups()
    if view.get("notFound") or view.get("blocked"):
        return UnreadablePostError("not_a_post", "notFound or blocked", f"{did}/{record_key}", did)
    return _post_or_error(did, record_key, view.get("record"), view=view.get("embed"), reposted=reposted)


def _post_or_error(did: Any, record_key: Any, record: Any, *, view: Any, reposted: bool) -> Post | UnreadablePostError:
    if not isinstance(did, str) or not isinstance(record_key, str) or not isinstance(record, Mapping):
        return UnreadablePostError("bad_post", "did, rkey, record: missing, or of another type")
    languages = as_list(record.get("langs"))
    try:
        return parse_post(
            {
                "id": f"{did}/{record_key}",
                "text": record.get("text"),
                "media": _media(as_object(record.get("embed")), as_object(view), did),
                "lang": languages[0] if languages else None,
                "created_at": record.get("createdAt"),
                "author": did,
                "source": "bluesky",
                "kind": "repost" if reposted else _kind(record),
            }
        )
    except UnreadablePostError as error:
        return error


def _kind(record: Mapping[str, Any]) -> str:
    if record.get("reply") is not None:
        return "reply"
    quoted = as_object(record.get("embed"))
    if quoted.get("$type") == "app.bsky.embed.recordWithMedia":
        quoted = as_object(quoted.get("record"))
    uri = as_object(quoted.get("record")).get("uri")
    # Lists and feeds are shown in the same way, and are no posts.
    return "quote" if isinstance(uri, str) and f"/{COLLECTION}/" in uri else "post"


def _media(embed: Mapping[str, Any], view: Mapping[str, Any], did: str) -> list[Any]:
    """The pictures of a record, by the addresses of its `view` where it has one, else by their hashes."""
    if embed.get("$type") == "app.bsky.embed.recordWithMedia":
        embed, view = as_object(embed.get("media")), as_object(view.get("media"))
    if embed.get("$type") == "app.bsky.embed.video":
        return [{"type": "video"}]
    if embed.get("$type") != "app.bsky.embed.images":
        return []  # a link's preview is not the author's picture
    images, shown = as_list(embed.get("images")), as_list(view.get("images"))
    if len(shown) != len(images):
        shown = [None] * len(images)
    return [
        {"url": as_object(shown_image).get("fullsize") or _picture_url(as_object(image).get("image"), did)}
        for image, shown_image in zip(images, shown, strict=True)
    ]


def _picture_url(blob: Any, did: str) -> str | None:
    """Where a picture is served; None where its hash or its author's name could not be part of an address."""
    cid = as_object(as_object(blob).get("ref")).get("$link") or as_object(blob).get("cid")
    if not isinstance(cid, str) or not re.fullmatch("[A-Za-z0-9]+", cid) or not re.fullmatch("[A-Za-z0-9.:%_-]+", did):
        return None
    return PICTURE_URL.format(did=did, cid=cid)
