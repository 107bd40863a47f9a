"""X (Twitter) API v2 → posts: pages of a search or timeline, and lines of a stream.

A page names a post's pictures by keys and lists them once for all its posts, in `includes.media`; likewise authors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from xmodal.posts.post import Post, UnreadablePostError, parse_post
from xmodal.posts.untrusted import as_list, as_object

KIND_OF_REFERENCE = {"retweeted": "repost", "replied_to": "reply", "quoted": "quote"}
"""In the order that counts where a post refers to several."""


def x_posts(record: Any) -> Iterator[Post | UnreadablePostError]:
    """The posts of a page or a stream line, in its order; for each that cannot be used, why.

    A page without results, or with `errors` alone, gives none. Posts that others refer to (`includes.tweets`) are not
    of the page. A video, or a picture that the page does not include, keeps its place among the post's media.
    """
    if not isinstance(record, Mapping):
        yield UnreadablePostError("bad_post", "not an object")
        return
    found = record.get("data")
    if found is None:
        return
    media_of_key, user_of_id = _included(record, "media", "media_key"), _included(record, "users", "id")
    for tweet in found if isinstance(found, list) else [found]:
        try:
            yield _tweet_post(tweet, media_of_key, user_of_id)
        except UnreadablePostError as error:
            yield error


def _included(page: Mapping[str, Any], name: str, key: str) -> dict[str, Mapping[str, Any]]:
    entries = [as_object(entry) for entry in as_list(as_object(page.get("includes")).get(name))]
    return {entry[key]: entry for entry in entries if isinstance(entry.get(key), str)}


def _tweet_post(
    tweet: Any, media_of_key: dict[str, Mapping[str, Any]], user_of_id: dict[str, Mapping[str, Any]]
) -> Post:
    if not isinstance(tweet, Mapping):
        raise UnreadablePostError("bad_post", "data: not an object")
    # `text` holds only the first 280 characters of a long post.
    long_text = as_object(tweet.get("note_tweet")).get("text")
    author = tweet.get("author_id")
    user = user_of_id.get(author, {}) if isinstance(author, str) else {}
    keys = as_object(tweet.get("attachments")).get("media_keys")
    post = parse_post(
        {
            "id": tweet.get("id"),
            "text": long_text or tweet.get("text"),
            "media": [_media_entry(key, media_of_key) for key in keys] if isinstance(keys, list) else keys,
            "lang": tweet.get("lang"),
            "created_at": tweet.get("created_at"),
            "author": user.get("username") or author,
            "source": "x",
            "kind": _kind(tweet),
        }
    )
    if all(entry.type == "missing" for entry in post.media):
        detail = "includes.media: has none of attachments.media_keys"
        raise UnreadablePostError("media_not_included", detail, post.id, post.author)
    return post


def _media_entry(key: Any, media_of_key: dict[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    missing = {"type": "missing"}
    return media_of_key.get(key, missing) if isinstance(key, str) else missing


def _kind(tweet: Mapping[str, Any]) -> str:
    references = [as_object(reference).get("type") for reference in as_list(tweet.get("referenced_tweets"))]
    return next((kind for reference, kind in KIND_OF_REFERENCE.items() if reference in references), "post")
