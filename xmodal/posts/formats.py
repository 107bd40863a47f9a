"""The formats of JSON that posts come in, and how a record tells which it has."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from xmodal.posts.bluesky import bluesky_posts
from xmodal.posts.mastodon import mastodon_posts
from xmodal.posts.post import Post, UnreadablePostError, parse_post
from xmodal.posts.untrusted import as_list, as_object
from xmodal.posts.x import x_posts

PostsFormat = Literal["auto", "xmodal", "x", "mastodon", "bluesky", "t4sa"]
"""`xmodal` is one post a record, as README.md shows it; the next three are what the services answer."""

SERVICES = ("x", "mastodon", "bluesky")


def detect_format(record: Any) -> PostsFormat:
    """The format of a decoded record, by the fields that only one of them has; `xmodal` if there are none."""
    fields = as_object(record) or as_object((as_list(record) or [None])[0])
    if {"id", "text", "media"} <= fields.keys():
        return "xmodal"
    if "content" in fields and ("visibility" in fields or "account" in fields):
        return "mastodon"
    if "payload" in fields and "event" in fields:
        return "mastodon"
    if {"id", "text"} <= fields.keys():  # asked after Mastodon, since some servers give a status its text besides
        return "xmodal"
    if {"did", "time_us"} <= fields.keys() or {"uri", "record"} <= fields.keys() or "feed" in fields:
        return "bluesky"
    if isinstance(fields.get("post"), dict) or isinstance(fields.get("thread"), dict) or "posts" in fields:
        return "bluesky"
    if isinstance(fields.get("data"), dict | list) or {"meta", "includes", "errors"} & fields.keys():
        return "x"
    return "xmodal"


def record_posts(record: Any, posts_format: PostsFormat) -> Iterator[Post | UnreadablePostError]:
    """The posts of a decoded record, and for each that cannot be used, why."""
    return _PARSERS[posts_format](record)


def _own_posts(record: Any) -> Iterator[Post | UnreadablePostError]:
    try:
        yield parse_post(record)
    except UnreadablePostError as error:
        yield error


_PARSERS: dict[str, Callable[[Any], Iterator[Post | UnreadablePostError]]] = {
    "xmodal": _own_posts,
    "x": x_posts,
    "mastodon": mastodon_posts,
    "bluesky": bluesky_posts,
}
assert {"auto", "t4sa", *_PARSERS} == set(get_args(PostsFormat))
