"""What `xmodal label` makes of posts that were forgotten: nothing, whether before or after they were labelled."""

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import label_command
import made_pictures as made
import pytest
import web_server as web

from shards.dataset import read_dataset, shard_names
from shards.index import read_index
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from xmodal.crawl.config import FetchConfig
from xmodal.curation.forget import forget
from xmodal.labelling import label as driver
from xmodal.labelling.config import LabelConfig
from xmodal.labelling.task import UnitJob, label_unit
from xmodal.teacher.lexicon import LexiconTeacher

NUM_POSTS, POSTS_PER_UNIT = 12, 4
PASSING = {1, 2, 6, 9}
"""Their pictures fail at first, and are there later."""


@pytest.fixture
def config(server: web.WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelConfig:
    """Post 0 to 11, by the authors 0 to 5 twice; the units are labelled here, one by one, without a Ray."""
    teacher = LexiconTeacher()

    def run_here(config: LabelConfig, dataset: str, recipe: Any, jobs: Iterable[UnitJob], on_result) -> None:
        for job in jobs:
            result = label_unit(
                config,
                dataset,
                job,
                label_posts=lambda posts: teacher.label([post.text for post in posts]),
                teacher={"name": teacher.name, "revision": teacher.revision},
                keeper=None,
                before_commit=lambda: None,
            )
            on_result(result)

    monkeypatch.setattr(driver, "run_on_ray", run_here)
    for number in range(NUM_POSTS):
        picture = web.content(made.jpeg(seed=number))
        server.answer(f"{number}.jpg", web.status(503) if number in PASSING else picture)
    posts = [
        {"id": f"p{number}", "text": "good", "author": f"a{number % 6}", "media": [f"{number}.jpg"]}
        for number in range(NUM_POSTS)
    ]
    return LabelConfig(
        posts=str(label_command.write_posts(tmp_path / "posts.jsonl", posts)),
        dataset=str(tmp_path / "dataset"),
        base_url=server.base_url,
        posts_per_unit=POSTS_PER_UNIT,
        fetch=FetchConfig(max_tries=1, allow_networks=label_command.LOOPBACK),
    )


def mend(server: web.WebServer) -> None:
    for number in PASSING:
        server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number)))


def scrub(config: LabelConfig, tmp_path: Path, *posts: str, authors: tuple[str, ...] = ()) -> None:
    files = {}
    for kind, names in (("posts", posts), ("authors", authors)):
        (tmp_path / f"{kind}.txt").write_text("\n".join(names))
        files[kind] = str(tmp_path / f"{kind}.txt") if names else None
    forget(config.dataset, **files, take_out=True)


def keys(config: LabelConfig) -> dict[str, list[str]]:
    storage = LocalStorage(config.dataset)
    assert [shard["name"] for shard in read_dataset(storage)["shards"]] == shard_names(storage)
    return {name: read_index(storage, name)["key"].to_pylist() for name in storage.names(".tar")}


def failed(config: LabelConfig) -> set[str]:
    lines = [line for path in Path(config.dataset).glob("*.failures.jsonl") for line in path.read_text().splitlines()]
    return {json.loads(line)["post_id"] for line in lines}


def test_a_scrubbed_unit_is_not_labelled_again_and_no_retry_brings_its_posts_back(config, server, tmp_path):
    driver.label(config)
    before = label_command.hashes(Path(config.dataset), "000001.tar")
    # p6 failed, and so did p9, whose author is a3.
    scrub(config, tmp_path, "p0", "p6", authors=("a3",))
    assert keys(config) == {
        "000000-scrubbed1.tar": [],
        "000001.tar": ["p4-0", "p5-0", "p7-0"],
        "000002.tar": ["p8-0", "p10-0", "p11-0"],
    }
    assert failed(config) == {"p1", "p2"}
    assert label_command.hashes(Path(config.dataset), "000001.tar") == before

    mend(server)
    asked = server.requests.copy()
    scrubbed = label_command.hashes(Path(config.dataset), "0*")
    again = driver.label(config)
    assert server.requests == asked
    assert (again.posts, again.rejected, again.shards_there_before) == (8, {"forgotten": 4}, 3)
    assert label_command.hashes(Path(config.dataset), "0*") == scrubbed

    assert driver.retry_failures(config).retryable == 0
    assert {path for path in server.requests if server.requests[path] > asked[path]} == {"/1.jpg", "/2.jpg"}
    assert keys(config)["000000-retry1.tar"] == ["p1-0", "p2-0"]

    # What a round of retries brought is scrubbed like all else, and the next round is counted on from it.
    scrub(config, tmp_path, "p1")
    assert keys(config)["000000-retry1-scrubbed1.tar"] == ["p2-0"]
    there = keys(config)
    assert driver.retry_failures(config).retryable == 0
    assert keys(config) == there


def test_posts_that_were_forgotten_and_not_scrubbed_are_not_tried_again(config, server, tmp_path):
    driver.label(config)
    record_tombstones(
        LocalStorage(config.dataset), Tombstones(frozenset(["p1", "p6"]), frozenset(["a3"])), reason="", recorded_at=""
    )
    mend(server)
    driver.retry_failures(config)
    assert keys(config)["000000-retry1.tar"] == ["p2-0"]
    # All that could be tried again of the other units was forgotten.
    assert set(keys(config)) == {"000000.tar", "000001.tar", "000002.tar", "000000-retry1.tar"}


def test_who_is_forgotten_before_the_posts_are_labelled_is_never_asked_for(config, server, tmp_path):
    LocalStorage(config.dataset, create=True)
    record_tombstones(
        LocalStorage(config.dataset), Tombstones(frozenset(["p0", "p4"]), frozenset(["a2"])), reason="", recorded_at=""
    )
    done = driver.label(config)
    assert (done.posts, done.rejected) == (8, {"forgotten": 4})
    for gone in (0, 2, 4, 8):
        assert not server.requests[f"/{gone}.jpg"]
    # The units are those that they would be with them.
    assert list(keys(config)["000001.tar"]) == ["p5-0", "p7-0"]
    with tarfile.open(Path(config.dataset) / "000002.tar") as tar:
        assert json.loads(tar.extractfile("p10-0.json").read())["author"] == "a4"
