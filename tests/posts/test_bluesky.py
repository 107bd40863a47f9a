import json
from pathlib import Path

import pytest
from hypothesis import given
from json_records import changed, json_values

from xmodal.posts.bluesky import bluesky_posts
from xmodal.posts.post import Media, Post, UnreadablePostError

SAMPLES = Path(__file__).parent / "samples"
EVENTS = [json.loads(line) for line in (SAMPLES / "bluesky_jetstream.jsonl").read_text().splitlines()]
THREAD = json.loads((SAMPLES / "bluesky_thread.json").read_text())
FEED = json.loads((SAMPLES / "bluesky_feed.json").read_text())
ADA, BO = "did:plc:adaexample2222222222222", "did:plc:boexample33333333333333"
CDN = "https://cdn.bsky.app/img/feed_fullsize/plain"


def only(record) -> Post | UnreadablePostError:
    (found,) = bluesky_posts(record)
    return found


def told(found) -> list[str]:
    """Of each, the record key and the kind or reason."""
    return [
        f"{post.id.rpartition('/')[2]} {post.kind}"
        if isinstance(post, Post)
        else f"{(post.post_id or '').rpartition('/')[2]} {post.reason}"
        for post in found
    ]


def test_an_event_of_a_new_post_gives_it_with_the_addresses_of_its_pictures():
    assert only(EVENTS[0]) == Post(
        id=f"{ADA}/3k01",
        text="Two pictures of the pier",
        media=(Media(url=f"{CDN}/{ADA}/bafkreione@jpeg"), Media(url=f"{CDN}/{ADA}/bafkreitwo@jpeg")),
        lang="en",
        created_at="2024-11-20T08:00:00.000Z",
        author=ADA,
        source="bluesky",
    )


def test_events_of_other_things_give_none_and_each_post_is_read_or_has_a_reason():
    assert told(found for event in EVENTS for found in bluesky_posts(event)) == [
        "3k01 post",
        "3k03 reply",
        "3k04 quote",
        "3k05 post",  # a film
        "3k06 no_media",  # the preview of a link is not the author's
        "3k07 no_media",
        "3k08 no_text",
        "3k09 post",
    ]


def test_the_first_language_counts_and_a_blob_of_the_first_days_has_an_address_too():
    answer, old = only(EVENTS[2]), only(EVENTS[9])
    assert (answer.lang, old.lang) == ("pt-BR", None)
    assert old.media == (Media(url=f"{CDN}/{ADA}/bafkreinine@jpeg"),)


def test_a_video_has_no_address_and_says_what_it_is():
    assert only(EVENTS[4]).media == (Media(url="", type="video"),)


def test_a_thread_gives_its_parents_then_the_post_then_its_replies():
    found = list(bluesky_posts(THREAD))
    assert told(found) == [
        "3k10 not_a_post",  # deleted
        "3k11 post",
        "3k12 reply",
        "3k13 reply",
        "3k14 no_media",
        "3k15 not_a_post",  # blocked
    ]
    assert all(one.post_id.startswith(f"{one.author}/") for one in found if isinstance(one, UnreadablePostError))
    # By the view where there is one, else by the record.
    assert [post.media[0].url for post in found[1:4]] == [
        f"{CDN}/{ADA}/bafkreia@jpeg",
        "https://cdn.example/full/bafkreib",
        "https://cdn.example/full/bafkreic",
    ]


def test_a_feed_a_search_and_a_bare_post_give_their_posts():
    assert told(bluesky_posts(FEED)) == ["3k21 post", "3k22 repost"]
    views = [entry["post"] for entry in FEED["feed"]]
    assert told(bluesky_posts({"posts": views})) == ["3k21 post", "3k22 post"]
    assert told(bluesky_posts(views[0])) == ["3k21 post"]
    assert told(bluesky_posts(FEED["feed"][1])) == ["3k22 repost"]


def test_an_event_and_an_answer_give_one_post_one_id():
    view = FEED["feed"][0]["post"]
    event = EVENTS[0] | {"commit": EVENTS[0]["commit"] | {"rkey": "3k21", "record": view["record"]}}
    assert only(event).id == only(view).id == f"{ADA}/3k21"


def test_a_list_or_feed_that_is_shown_is_no_quote():
    record = EVENTS[3]["commit"]["record"]
    shown = {"$type": "app.bsky.embed.record", "record": {"uri": f"at://{BO}/app.bsky.graph.list/3k"}}
    changed_record = record | {"embed": record["embed"] | {"record": shown}}
    assert only(EVENTS[3] | {"commit": EVENTS[3]["commit"] | {"record": changed_record}}).kind == "post"


@pytest.mark.parametrize("cid", ["../../x", "a b", "", None, 5])
def test_a_hash_that_is_none_gets_no_address(cid):
    record = json.loads(json.dumps(EVENTS[0]))
    record["commit"]["record"]["embed"]["images"][0]["image"]["ref"]["$link"] = cid
    assert [media.url for media in only(record).media] == ["", f"{CDN}/{ADA}/bafkreitwo@jpeg"]


def test_a_thread_of_any_depth_is_read():
    deep = {"post": FEED["feed"][0]["post"]}
    for _ in range(5000):
        deep = {"post": FEED["feed"][0]["post"], "replies": [deep], "parent": {"post": FEED["feed"][1]["post"]}}
    assert len(list(bluesky_posts({"thread": deep}))) == 5002


@pytest.mark.parametrize("record", [None, 5, "text", []])
def test_a_record_that_is_no_object_is_a_bad_post(record):
    assert only(record).reason == "bad_post"


def test_an_object_that_is_none_of_these_is_no_post():
    assert only({"hello": "world"}).reason == "not_a_post"


@given(json_values | changed(EVENTS[0]) | changed(EVENTS[3]) | changed(THREAD) | changed(FEED))
def test_any_record_gives_posts_and_reasons_alone(record):
    assert all(isinstance(found, Post | UnreadablePostError) for found in bluesky_posts(record))
