"""What real services answered, where it is at hand; it may not be shipped."""

import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
from optional_data import FOLDER, needs

from xmodal.posts.post import Post
from xmodal.posts.readers import PostRecord, check_posts_file, read_posts

SAMPLES = FOLDER / "post_samples"

pytestmark = needs("post_samples")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a file holds, counted by jq and not by this project."""

    kinds: dict[str, int]
    media: dict[str, int]
    unreadable: dict[str, int] = field(default_factory=dict)
    num_without_url: int = 0


# X: with `[.[].data | if type == "array" then .[] else . end]` the posts, of these `select(.attachments.media_keys)`
# the ones with media, `.referenced_tweets[]?.type` their kinds, and the part of their keys before `_` their media:
# 3 photo, 7 video, 16 animated GIF. All have text. The pages hold more keys, in the `includes.tweets` that their posts
# refer to. The last line of the stream is cut off. Jetstream: of 152 events 17 are `create` of `app.bsky.feed.post`;
# 2 embed images (one each), 3 a link, one of these without text, and 12 nothing.
EXPECTED = {
    "x_v2_brexit.jsonl": Expected(
        kinds={"post": 1, "quote": 1, "reply": 2, "repost": 2},
        media={"photo": 6, "animated_gif": 2},
        num_without_url=2,
        unreadable={"no_media": 94},
    ),
    "x_v2_entities_test.jsonl": Expected(kinds={}, media={}, unreadable={"no_media": 474}),
    "x_v2_media_policy_violation_on.jsonl": Expected(
        kinds={"post": 15, "reply": 1, "repost": 1},
        media={"photo": 13, "video": 10},
        num_without_url=10,
        unreadable={"no_media": 83},
    ),
    "x_v2_noflat.jsonl": Expected(
        kinds={"reply": 6}, media={"photo": 1, "animated_gif": 5}, num_without_url=5, unreadable={"no_media": 94}
    ),
    "x_v2_streaming_output_with_error.jsonl": Expected(
        kinds={"post": 1, "quote": 1}, media={"photo": 2}, unreadable={"no_media": 5, "bad_json": 1}
    ),
    "mastodon_statuses.jsonl": Expected(kinds={"post": 8}, media={"photo": 6, "video": 3}),
    "bluesky_jetstream.jsonl": Expected(
        kinds={"post": 2}, media={"photo": 2}, unreadable={"no_media": 14, "no_text": 1}
    ),
    "bluesky_appview_thread.json": Expected(kinds={}, media={}, unreadable={"no_text": 1}),
}


def records(name: str) -> list[PostRecord]:
    path = str(SAMPLES / name)
    check_posts_file(path)
    return list(read_posts(path))


def test_every_file_is_known_here():
    assert {path.name for path in SAMPLES.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_posts_of_a_file_are_those_that_jq_counts(name):
    found, expected = records(name), EXPECTED[name]
    posts = [record.post for record in found if record.post]
    assert Counter(post.kind for post in posts) == expected.kinds
    assert Counter(media.type for post in posts for media in post.media) == expected.media
    assert sum(not media.url for post in posts for media in post.media) == expected.num_without_url
    assert Counter(record.reason for record in found if not record.post) == expected.unreadable
    assert {post.source for post in posts} <= {name.partition("_")[0]}


@pytest.mark.parametrize("name", EXPECTED)
def test_photos_have_addresses_and_posts_their_authors_and_times(name):
    for record in records(name):
        if record.post:
            assert record.post.author
            assert record.post.created_at
            assert all(media.url.startswith("http") for media in record.post.media if media.type == "photo")


def test_some_posts_are_what_a_person_reads_in_them():
    def posts(name: str, **fields: str) -> list[Post]:
        found = [record.post for record in records(name) if record.post]
        return [post for post in found if all(getattr(post, field) == value for field, value in fields.items())]

    (quoting,) = posts("x_v2_brexit.jsonl", kind="quote")
    assert (quoting.lang, len(quoting.media)) == ("en", 3)
    statuses = posts("mastodon_statuses.jsonl", lang="en")
    assert [len(post.media) for post in statuses] == [1, 2, 1, 1, 1]
    assert [post.text for post in statuses[2:4]] == ["Status with media", "Status with media reposted"]
    (russian,) = posts("bluesky_jetstream.jsonl", lang="ru")
    did, _, _ = russian.id.partition("/")
    assert re.fullmatch(rf"https://[a-z.]+/img/feed_fullsize/plain/{did}/bafkrei\w+@jpeg", russian.media[0].url)
