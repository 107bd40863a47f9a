"""What real services sent, where it is at hand, collected from a server that sends it."""

import json
import threading

import collecting
from optional_data import FOLDER, needs

from xmodal.posts.bluesky import bluesky_posts
from xmodal.posts.mastodon import mastodon_posts
from xmodal.posts.post import Post
from xmodal.posts.x import x_posts

SAMPLES = FOLDER / "post_samples"

pytestmark = needs("post_samples")

FILES = {
    "x": ("x_v2_media_policy_violation_on.jsonl", x_posts),
    "mastodon": ("mastodon_statuses.jsonl", mastodon_posts),
    "bluesky": ("bluesky_jetstream.jsonl", bluesky_posts),
}


def test_what_a_real_service_sent_is_collected_as_it_is_read_from_a_file(source, service, tmp_path):
    name, read = FILES[source]
    records = [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]
    expected = dict.fromkeys(post.id for record in records for post in read(record) if isinstance(post, Post))
    sent = [{"event": "update", "data": record} for record in records] if source == "mastodon" else records

    def publish():
        service.feed.wait_for_streams(1)
        service.feed.publish(*sent)

    threading.Thread(target=publish, daemon=True).start()
    collecting.run(source, service.url, tmp_path, max_posts=len(expected))
    assert expected
    assert collecting.collected(tmp_path) == list(expected)
