import json
from pathlib import Path

import pytest
from hypothesis import given
from json_records import json_values

from xmodal.posts.formats import detect_format, record_posts
from xmodal.posts.post import Post, UnreadablePostError

SAMPLES = Path(__file__).parent / "samples"


def records(name: str) -> list:
    text = (SAMPLES / name).read_text()
    documents = [text] if name.endswith(".json") else [line for line in text.splitlines() if line]
    return [json.loads(document) for document in documents]


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_every_record_of_a_service_tells_its_format(name):
    assert {detect_format(record) for record in records(name)} == {name.partition("_")[0]}


def test_a_status_of_a_server_that_adds_its_text_is_one():
    assert {detect_format(record | {"text": "plain"}) for record in records("mastodon_statuses.jsonl")} == {"mastodon"}


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "text": "a", "media": ["a.jpg"]},
        {"id": "1", "text": "a", "media": ["a.jpg"], "data": "dump", "kind": "post", "post": 5, "author": "ada"},
        {"id": "1", "text": "a", "media": ["a.jpg"], "data": {}, "meta": {}, "feed": [], "thread": {}, "uri": "a"},
        {},
        [],
        [5],
        "text",
        None,
    ],
    ids=str,
)
def test_every_other_record_is_taken_for_our_own(record):
    assert detect_format(record) == "xmodal"


@given(json_values)
def test_any_record_of_any_format_gives_posts_and_reasons_alone(record):
    for posts_format in ("xmodal", "x", "mastodon", "bluesky", detect_format(record)):
        assert all(isinstance(found, Post | UnreadablePostError) for found in record_posts(record, posts_format))
