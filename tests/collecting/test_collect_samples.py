"""What real services sent, where $XMODAL_POST_SAMPLES names the folder of it, collected from a server that sends it."""

import json
import os
import threading
from pathlib import Path

import collecting
import pytest

from xmodal.posts.bluesky import bluesky_posts
from xmodal.posts.mastodon import mastodon_posts
from xmodal.posts.post import Post
from xmodal.posts.x import x_posts

FOLDER = os.environ.get("XMODAL_POST_SAMPLES")

pytestmark = pytest.mark.skipif(not FOLDER, reason="XMODAL_POST_SAMPLES names no folder of services' answers")

FILES = {
    "x": ("x_v2_media_policy_violation_on.jsonl", x_posts),
    "mastodon": ("mastodon_statuses.jsonl", mastodon_posts),
    "bluesky": ("bluesky_jetstream.jsonl", bluesky_posts),
}


def test_what_a_real_service_sent_is_collected_as_it_is_read_from_a_file(source, service, tmp_path):
    name, read = FILES[source]
    records = [json.loads(line) for line in (Path(FOLDER or "") / name).read_text().splitlines()]
    expected = dict.fromkeys(post.id for record in records for post in read(record) if isinstance(post, Post))
    sent = [{"event": "update", "data": record} for record in records] if source == "mastodon" else records

    def publish():
        service.feed.wait_for_streams(1)
        service.feed.publish(*sent)

    threading.Thread(target=publish, daemon=True).start()
    collecting.run(source, service.url, tmp_path, max_posts=len(expected))
    assert expected
    assert collecting.collected(tmp_path) == list(expected)
