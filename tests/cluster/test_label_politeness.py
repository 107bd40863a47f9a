"""How hard a whole cluster presses on one host: by the log of a server that four tasks fetch from at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import label_command
import pytest
from picture_server import requests_of, serving_pictures
from ray_head import Head, free_port, ray_head

RATE, CONCURRENT, NUM_POSTS, PAUSE_AT, PAUSE_SECONDS = 20, 6, 240, 120, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[tuple[Head, list[dict], Path]]:
    """A label run on four processors: the head, what its server logged, the dataset."""
    folder = tmp_path_factory.mktemp("polite")
    posts = label_command.write_posts(
        folder / "posts.jsonl",
        [{"id": str(number), "text": "fine", "media": [f"{number}.jpg"]} for number in range(NUM_POSTS)],
    )
    pause = {"pause_at": PAUSE_AT, "pause_seconds": PAUSE_SECONDS}
    with (
        ray_head(num_cpus=4) as head,
        serving_pictures(folder / "log", free_port(), delay=0.2, **pause) as url,
    ):
        command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={folder / 'dataset'}", f"--base_url={url}"]
        command += ["--posts_per_unit=30", f"--ray_address={head.address}", label_command.ALLOW_LOOPBACK]
        command += [f"--politeness.requests_per_second={RATE}", f"--politeness.max_concurrent={CONCURRENT}"]
        done = label_command.run(command, head.environment)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"samples +{NUM_POSTS}\n", done.stdout)
        yield head, requests_of(folder / "log"), folder / "dataset"


def test_no_second_of_the_servers_log_holds_more_requests_than_allowed(run):
    _, log, _ = run
    times = [request["time"] for request in log]
    assert len(times) == NUM_POSTS + 1  # each picture once, and once again what the pause was asked for with
    busiest = max(sum(start <= time < start + 1 for time in times) for start in times)
    assert busiest <= RATE + 2
    # The limit is what slowed it down, not something else.
    assert busiest >= RATE - 5


def test_never_more_requests_are_under_way_than_allowed(run):
    _, log, _ = run
    assert max(request["under_way"] for request in log) <= CONCURRENT


def test_a_pause_that_one_task_is_asked_for_is_kept_by_all(run):
    _, log, _ = run
    (asked,) = [request["time"] for request in log if request["paused"]]
    # It is answered 0.2 s after it came in; what was sent before the answer arrived may still come in.
    assert not [request for request in log if asked + 0.6 < request["time"] < asked + 0.2 + PAUSE_SECONDS]
    assert [request for request in log if request["time"] >= asked + 0.2 + PAUSE_SECONDS]


def test_rays_prometheus_endpoint_tells_what_was_done(run):
    head, _, dataset = run
    with urlopen(head.metrics, timeout=30) as answer:
        told = answer.read().decode()

    def total(name: str, labels: str = "") -> float:
        values = re.findall(rf"^ray_xmodal_{name}(?:_total)?{{[^}}]*{labels}[^}}]*}} (\S+)$", told, re.MULTILINE)
        return sum(map(float, values))

    assert total("pictures_fetched") == NUM_POSTS
    assert total("units_committed") == len(list(dataset.glob("*.tar"))) == 8
    assert total("texts_labelled") == NUM_POSTS
    assert total("picture_bytes") > 100 * NUM_POSTS
    assert total("host_wait_seconds", 'host="127.0.0.1"') > 0
    assert total("host_requests", 'host="127.0.0.1"') > 0
