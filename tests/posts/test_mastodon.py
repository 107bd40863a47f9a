import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from json_records import changed, json_values

from xmodal.posts.mastodon import MAX_HTML_LENGTH, mastodon_post, mastodon_posts
from xmodal.posts.post import Media, Post, UnreadablePostError

SAMPLES = Path(__file__).parent / "samples"


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


STATUSES = lines("mastodon_statuses.jsonl")


def status(**changes):
    image = {"type": "image", "url": "https://files.example/1.jpg"}
    plain = {"id": "1", "content": "<p>a lovely day</p>", "visibility": "public", "media_attachments": [image]}
    return plain | changes


def refusal(record) -> UnreadablePostError:
    with pytest.raises(UnreadablePostError) as caught:
        mastodon_post(record)
    return caught.value


def test_a_status_becomes_a_post_with_the_text_that_a_reader_sees():
    assert mastodon_post(STATUSES[0]) == Post(
        id="112000000000000001",
        text="@bo look & wonder: 3 < 4\nwhat a day\n🌞\nMore at https://example.org/a/long/way #sun",
        media=(Media(url="https://files.example/1.jpg"), Media(url="https://far.example/2.png")),
        lang="en",
        created_at="2024-05-01T10:00:00.000Z",
        author="ada",
        source="mastodon",
    )


def test_a_boost_shows_anothers_words_and_pictures_under_its_own_id_and_author():
    post = mastodon_post(STATUSES[1])
    assert (post.id, post.author, post.kind) == ("112000000000000002", "bo@far.example", "repost")
    assert (post.text, post.lang, len(post.media)) == ("Shown again", "fr", 1)


def test_the_statuses_of_the_samples_are_read_or_have_a_reason():
    found = [next(mastodon_posts(record)) for record in STATUSES]
    assert [post.kind if isinstance(post, Post) else post.reason for post in found] == [
        *("post", "repost", "reply", "quote", "not_public", "no_media", "post", "no_text")
    ]
    assert found[3].text == "My words"  # without the link to what it quotes
    assert [media.type for media in found[6].media] == ["video", "gifv", "unknown"]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("<p>one<br>two<br/>three<br />four</p>", "one\ntwo\nthree\nfour"),
        ("<p>one\n  two</p>", "one two"),
        ("&lt;b&gt; &amp;amp; &#128512; &nbsp;x", "<b> &amp; 😀 \xa0x"),
        ("<ul><li>one</li><li>two</li></ul>three", "one\ntwo\nthree"),
        ("plain", "plain"),
        ("<p>I <3 you <em>so", "I <3 you so"),
        ("a < b and b > c", "a < b and b > c"),
        ("<script>alert(1)</script>seen<style>p{}</style>", "seen"),
        ("<p>open <a href='x", "open <a href='x"),
    ],
)
def test_html_becomes_plain_text(html, text):
    assert mastodon_post(status(content=html)).text == text


@pytest.mark.parametrize("visibility", ["private", "direct", "limited", None, 5, ["public"]])
def test_what_was_not_shown_to_everyone_is_refused(visibility):
    account = {"acct": "ada@far.example"}
    for changes in ({"visibility": visibility}, {"reblog": status(visibility=visibility)}):
        error = refusal(status(account=account, **changes))
        assert (error.reason, error.post_id, error.author) == ("not_public", "1", "ada@far.example")
        assert "lovely" not in str(error)


@pytest.mark.parametrize("broken", ["<a ", "<a b='", '<a b="c', "<!--x>", "<!["])
def test_html_made_to_take_long_takes_no_minutes(broken):
    # The parser of Python 3.11 takes 80 seconds over the first.
    start = time.process_time()
    mastodon_post(status(content="x" + broken * (MAX_HTML_LENGTH // len(broken) - 1)))
    assert time.process_time() - start < 20


def test_html_longer_than_any_server_sends_is_a_bad_post():
    assert refusal(status(content="x" * (MAX_HTML_LENGTH + 1))).reason == "bad_post"


def test_a_record_that_is_no_status_is_told_so():
    assert refusal([]).reason == "bad_post"
    assert refusal({"id": "1", "type": "favourite"}).reason == "not_a_post"


def test_a_page_of_a_timeline_gives_each_of_its_statuses():
    found = list(mastodon_posts(json.loads((SAMPLES / "mastodon_timeline.json").read_text())))
    assert [post.id[-1] for post in found] == ["1", "2", "3"]


def test_of_a_stream_only_events_of_statuses_count():
    found = [list(mastodon_posts(event)) for event in lines("mastodon_stream.jsonl")]
    assert [post.id for post in found[0]] == ["112000000000000001"]
    assert found[1] == []
    assert [error.reason for error in found[2]] == ["no_media"]
    assert [error.reason for error in mastodon_posts({"event": "update", "payload": "{"})] == ["bad_json"]
    assert [error.reason for error in mastodon_posts({"event": "update"})] == ["bad_json"]


@given(json_values | changed(STATUSES[0]) | changed(STATUSES[1]) | changed([*STATUSES]))
def test_any_record_gives_posts_and_reasons_alone(record):
    assert all(isinstance(found, Post | UnreadablePostError) for found in mastodon_posts(record))


@given(json_values | changed(STATUSES[0]))
def test_any_status_is_a_post_or_has_a_reason(record):
    with suppress(UnreadablePostError):
        assert isinstance(mastodon_post(record), Post)
