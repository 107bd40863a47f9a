"""How hard a whole cluster presses on one host: by the log of a server that four tasks fetch from at a time."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import label_command
import made_pictures as made
import pytest
from picture_server import requests_of, serving_pictures
from ray_head import Head, free_port, ray_head
from tiny_classifier import save_classifier

RATE, NUM_POSTS, PAUSE_AT, PAUSE_SECONDS = 20, 240, 120, 5
SLOW_HOST, SLOW_CONCURRENT, NUM_SLOW_POSTS, NUM_MISSING = "127.0.0.2", 3, 60, 4
"""The other host has no limit but this one, and would be asked for all of its pictures at once."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A label run on four processors, of the pictures of two hosts."""

    head: Head
    log: list[dict]
    """Requests that came to the host whose rate is limited."""
    slow_log: list[dict]
    """Those to the other one."""
    dataset: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("polite")
    pause = {"pause_at": PAUSE_AT, "pause_seconds": PAUSE_SECONDS}
    with (
        ray_head(num_cpus=4) as head,
        serving_pictures(folder / "log", free_port(), delay=0.2, **pause) as url,
        serving_pictures(folder / "slow-log", free_port(), host=SLOW_HOST, delay=0.5) as slow_url,
    ):
        media = [f"{number}.jpg" for number in range(NUM_POSTS)]
        for number in range(NUM_SLOW_POSTS):
            media.insert(5 * number, f"{slow_url}{number}.jpg")
        media += [f"{slow_url}missing-{number}.jpg" for number in range(NUM_MISSING)]
        posts = label_command.write_posts(
            folder / "posts.jsonl",
            [{"id": str(number), "text": "fine", "media": [one]} for number, one in enumerate(media)],
        )
        command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={folder / 'dataset'}", f"--base_url={url}"]
        command += ["--posts_per_unit=30", f"--ray_address={head.address}", label_command.ALLOW_LOOPBACK]
        own = {"host": SLOW_HOST, "requests_per_second": 0, "max_concurrent": SLOW_CONCURRENT}
        command += [f"--politeness.requests_per_second={RATE}", f"--politeness.hosts={json.dumps([own])}"]
        done = label_command.run(command, head.environment)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"samples +{NUM_POSTS + NUM_SLOW_POSTS}\n", done.stdout)
        log, slow_log = requests_of(folder / "log"), requests_of(folder / "slow-log")
        yield Run(head=head, log=log, slow_log=slow_log, dataset=folder / "dataset")


def test_no_second_of_the_servers_log_holds_more_requests_than_allowed(run):
    times = [request["time"] for request in run.log]
    assert len(times) == NUM_POSTS + 1  # each picture once, and once again what the pause was asked for with
    busiest = max(sum(start <= time < start + 1 for time in times) for start in times)
    assert busiest <= RATE + 2
    # The limit is what slowed it down, not something else.
    assert busiest >= RATE - 5


def test_never_more_requests_are_under_way_than_allowed(run):
    assert len(run.slow_log) == NUM_SLOW_POSTS
    # The limit is reached, and by more than one task.
    assert max(request["under_way"] for request in run.slow_log) == SLOW_CONCURRENT


def test_a_pause_that_one_task_is_asked_for_is_kept_by_all(run):
    (asked,) = [request["time"] for request in run.log if request["paused"]]
    # It is answered 0.2 s after it came in; what was sent before the answer arrived may still come in.
    assert not [request for request in run.log if asked + 0.6 < request["time"] < asked + 0.2 + PAUSE_SECONDS]
    assert [request for request in run.log if request["time"] >= asked + 0.2 + PAUSE_SECONDS]


def metric(head: Head, name: str, labels: str = "") -> float:
    """The sum over all processes of what Ray's endpoint tells."""
    with urlopen(head.metrics, timeout=30) as answer:
        told = answer.read().decode()
    values = re.findall(rf"^ray_xmodal_{name}(?:_total)?{{[^}}]*{labels}[^}}]*}} (\S+)$", told, re.MULTILINE)
    return sum(map(float, values))


def test_rays_prometheus_endpoint_tells_what_was_done(run):
    num_posts = NUM_POSTS + NUM_SLOW_POSTS
    assert metric(run.head, "pictures_fetched") == num_posts
    assert metric(run.head, "units_committed") == len(list(run.dataset.glob("*.tar"))) == 11
    assert metric(run.head, "texts_labelled") == num_posts + NUM_MISSING
    assert metric(run.head, "picture_bytes") > 100 * num_posts
    assert metric(run.head, "failures", 'reason="http_error"') == metric(run.head, "failures") == NUM_MISSING
    for host in ("127.0.0.1", SLOW_HOST):
        assert metric(run.head, "host_wait_seconds", f'host="{host}"') > 0
        assert metric(run.head, "host_requests", f'host="{host}"') > 0


def test_rays_prometheus_endpoint_tells_what_a_teacher_has_read(run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(made.jpeg())
    texts = ["so" + number * " sad" for number in range(20)]
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": text, "media": ["a.jpg"]} for number, text in enumerate(texts)],
    )
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'dataset'}"]
    command += [f"--ray_address={run.head.address}", "--teacher.kind=transformers", f"--media_folder={tmp_path}"]
    command += [f"--teacher.model={save_classifier(tmp_path / 'model')}"]
    done = label_command.run(command, run.head.environment)
    assert done.returncode == 0, done.stderr
    # Each word is a token, and two stand around a text.
    assert metric(run.head, "tokens_read") == sum(len(text.split()) + 2 for text in texts)
    assert metric(run.head, "tokens_per_second") > 0
