import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_records import changed, json_values

from xmodal.posts.post import Media, Post, UnreadablePostError
from xmodal.posts.x import x_posts

SAMPLES = Path(__file__).parent / "samples"
PAGE, EMPTY_PAGE = (json.loads(line) for line in (SAMPLES / "x_pages.jsonl").read_text().splitlines())
STREAM = [json.loads(line) for line in (SAMPLES / "x_stream.jsonl").read_text().splitlines() if line]


def tweet(**changes):
    return {"id": "1", "text": "a lovely day", "attachments": {"media_keys": ["3_1"]}} | changes


def page(*tweets, **includes):
    photo = {"media_key": "3_1", "type": "photo", "url": "https://pbs.example/1.jpg"}
    return {"data": list(tweets), "includes": {"media": [photo]} | includes}


def only(record) -> Post | UnreadablePostError:
    (found,) = x_posts(record)
    return found


def test_a_page_gives_its_posts_with_their_media_and_authors():
    found = list(x_posts(PAGE))
    assert found[0] == Post(
        id="1700000000000000001",
        text="Morning on the pier, and the sea is quiet https://t.example/a",
        media=(
            Media(url="https://pbs.example/media/one.jpg", type="photo"),
            Media(url="https://pbs.example/media/two.png", type="photo"),
        ),
        lang="en",
        created_at="2023-09-08T06:12:00.000Z",
        author="ada_example",
        source="x",
    )
    assert [post.id[-1] if isinstance(post, Post) else post.reason for post in found] == [
        *("1", "2", "3", "no_media", "5", "no_media", "media_not_included", "8")
    ]


def test_a_page_without_results_or_with_errors_alone_gives_none():
    assert list(x_posts(EMPTY_PAGE)) == []
    assert list(x_posts({"errors": [{"title": "Not Found Error"}]})) == []
    assert list(x_posts({"title": "operational-disconnect", "errors": []})) == []
    assert list(x_posts({"data": []})) == []
    assert list(x_posts({})) == []


def test_errors_beside_posts_cost_no_post():
    assert only(page(tweet()) | {"errors": [{"title": "Forbidden"}, 5]}).id == "1"


def test_a_stream_line_holds_one_post():
    first, second = (only(line) for line in STREAM)
    assert (first.id, first.kind) == ("1700000000000000101", "quote")
    assert first.author == "1002"  # whose name is not included
    assert (second.reason, second.post_id) == ("no_media", "1700000000000000102")


@pytest.mark.parametrize(
    ("references", "kind"),
    [
        (None, "post"),
        ([], "post"),
        (["retweeted"], "repost"),
        (["replied_to"], "reply"),
        (["quoted"], "quote"),
        (["quoted", "replied_to"], "reply"),
        (["replied_to", "retweeted"], "repost"),
        (["admired"], "post"),
    ],
)
def test_what_a_post_refers_to_is_its_kind(references, kind):
    listed = None if references is None else [{"type": name, "id": "9"} for name in references]
    assert only(page(tweet(referenced_tweets=listed))).kind == kind


def test_posts_that_others_refer_to_are_not_of_the_page():
    assert [post.id for post in x_posts(page(tweet(), tweets=[tweet(id="2")]))] == ["1"]


def test_the_whole_text_of_a_long_post_is_taken():
    assert only(page(tweet(note_tweet={"text": "all of it, " * 50}))).text == "all of it, " * 50
    assert only(page(tweet(note_tweet={}))).text == "a lovely day"


def test_videos_and_pictures_that_are_not_included_keep_their_places():
    keys = {"media_keys": ["7_1", "3_1", "3_9", 5]}
    video = {"media_key": "7_1", "type": "video", "preview_image_url": "https://pbs.example/still.jpg"}
    photo = {"media_key": "3_1", "type": "photo", "url": "https://pbs.example/1.jpg"}
    post = only(page(tweet(attachments=keys), media=[video, photo, "odd", {"media_key": ["3_9"]}]))
    assert [(media.type, media.url) for media in post.media] == [
        ("video", ""),
        ("photo", "https://pbs.example/1.jpg"),
        ("missing", ""),
        ("missing", ""),
    ]


def test_a_post_of_which_the_page_includes_no_picture_is_told_so_with_its_id():
    found = only({"data": tweet(author_id="9")})
    assert (found.reason, found.post_id, found.author) == ("media_not_included", "1", "9")
    assert "includes.media" in found.detail


@pytest.mark.parametrize("record", [None, 5, "text", [page(tweet())]])
def test_a_record_that_is_no_object_is_a_bad_post(record):
    assert only(record).reason == "bad_post"


def test_a_broken_post_costs_no_neighbour():
    found = list(x_posts(page(tweet(id=None), 5, tweet(text=5), tweet(id="2"))))
    assert [post.id if isinstance(post, Post) else post.reason for post in found] == ["bad_post"] * 3 + ["2"]


@given(json_values | changed(PAGE) | changed(STREAM[0]) | st.lists(changed(tweet())).map(lambda some: page(*some)))
def test_any_record_gives_posts_and_reasons_alone(record):
    assert all(isinstance(found, Post | UnreadablePostError) for found in x_posts(record))
