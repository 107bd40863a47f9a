"""What `xmodal label` makes of posts that were forgotten: nothing, whether before or after they were labelled."""

import json
import tarfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import label_command
import made_pictures as made
import pytest
import web_server as web

from shards.dataset import read_dataset, shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.scrub_marker import marked_as_scrubbing
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from xmodal.crawl.config import FetchConfig
from xmodal.curation.forget import forget
from xmodal.labelling import label as driver
from xmodal.labelling.config import LabelConfig
from xmodal.labelling.summaries import describe_shard
from xmodal.labelling.task import UnitJob, label_unit
from xmodal.teacher.lexicon import LexiconTeacher
from xmodal.teacher.teacher import TeacherConfig

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
    return config_of(posts, server, tmp_path)


def config_of(posts: list[dict[str, Any]], server: web.WebServer, tmp_path: Path) -> LabelConfig:
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


@pytest.mark.usefixtures("config")
def test_an_authors_records_that_are_no_posts_are_forgotten_with_all_else(server, tmp_path):
    eve = "did:plc:eve"
    records = [
        {"id": "p0", "text": "good", "author": "ada", "media": ["0.jpg"]},
        {"id": "p3", "text": "good", "author": eve, "media": []},
        {"id": "p4", "author": eve, "media": ["4.jpg"]},
        {"id": "p5", "text": "good", "author": eve, "media": "5.jpg"},
        {"id": "p7", "text": "good", "author": eve, "media": ["7.jpg"], "kind": "story"},
        {"id": f"{eve}/3k", "text": "", "author": eve, "media": ["8.jpg"]},
        {"id": "did:plc:fay/4k", "text": "", "author": "did:plc:fay", "media": ["9.jpg"]},
    ]
    config = config_of(records, server, tmp_path)
    driver.label(config)
    assert failed(config) == {"p3", "p4", "p5", "p7", f"{eve}/3k", "did:plc:fay/4k"}
    scrub(config, tmp_path, authors=(eve,))
    assert failed(config) == {"did:plc:fay/4k"}
    for again in range(2):
        if again:  # from nothing, with the same tombstones
            for shard in Path(config.dataset).glob("0*"):
                shard.unlink()
        assert driver.label(config).rejected == {"forgotten": 5}
        assert failed(config) == {"did:plc:fay/4k"}
        for path in Path(config.dataset).glob("*.*"):
            assert eve.encode() not in path.read_bytes()


def test_posts_without_a_label_are_forgotten_by_their_author(config, server, tmp_path):
    config = replace(config, teacher=TeacherConfig(kind="given"))
    record_tombstones(
        LocalStorage(config.dataset, create=True), Tombstones(frozenset(), frozenset(["a2"])), reason="", recorded_at=""
    )
    done = driver.label(config)
    assert done.rejected == {"forgotten": 2}
    assert failed(config) == {f"p{number}" for number in range(NUM_POSTS) if number % 6 != 2}


@pytest.mark.parametrize("verb", [driver.label, driver.retry_failures])
def test_nothing_is_labelled_while_posts_are_scrubbed_and_the_scrub_goes_on(config, server, tmp_path, verb):
    driver.label(config)
    mend(server)
    storage = LocalStorage(config.dataset)
    before = label_command.hashes(Path(config.dataset))
    with marked_as_scrubbing(storage) as require_alone:
        with pytest.raises(UserError, match="`xmodal forget --scrub` is at work"):
            verb(config)
        require_alone()
        assert not storage.exists("status.json")
    assert label_command.hashes(Path(config.dataset)) == before
    verb(config)


@pytest.mark.parametrize("verb", [driver.label, driver.retry_failures])
def test_a_scrub_is_refused_until_the_dataset_is_finished(config, server, tmp_path, monkeypatch, verb):
    """The summaries are made last, and of a large dataset they take long."""
    driver.label(config)
    mend(server)
    refused = []

    def describe_and_scrub(index):
        with pytest.raises(UserError, match="`xmodal label` is at work"):
            scrub(config, tmp_path, "p0")
        refused.append(json.loads(Path(config.dataset, "status.json").read_text())["state"])
        return describe_shard(index)

    monkeypatch.setattr(driver, "describe_shard", describe_and_scrub)
    verb(config)
    assert refused
    assert set(refused) == {"finishing"}
    assert not Path(config.dataset, "status.json").exists()
    scrub(config, tmp_path, "p0")
    assert "000000-scrubbed1.tar" in keys(config)


def test_a_run_that_finds_a_scrub_at_work_when_it_ends_leaves_the_summaries_to_another(config, server, tmp_path):
    driver.label(config)
    storage = LocalStorage(config.dataset)
    before = storage.read("dataset.json")

    def answer(handler) -> None:
        storage.replace("scrub-0.json", json.dumps({"updated": time.time()}).encode())
        web.content(made.jpeg(seed=1))(handler)

    mend(server)
    server.answer("1.jpg", answer)
    with pytest.raises(UserError, match="`xmodal forget --scrub` is at work"):
        driver.retry_failures(config)
    assert storage.read("dataset.json") == before
    storage.delete("scrub-0.json")
    driver.retry_failures(config)
    assert "000000-retry1.tar" in keys(config)
