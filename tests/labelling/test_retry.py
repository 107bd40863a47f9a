"""`xmodal label --retry-failures`: what could not be fetched is tried again, and nothing committed is touched."""

import json
import re
import tarfile
from pathlib import Path

import label_command
import made_pictures as made
import pytest
import web_server as web

from shards.dataset import read_dataset
from shards.storage import open_storage

NUM_POSTS, POSTS_PER_UNIT = 12, 4
PASSING = {1, 6, 7}
"""Their pictures fail at first, and are there later."""
STILL_BUSY, GONE = 2, 3


@pytest.fixture
def command(server, tmp_path) -> list[str]:
    for number in range(NUM_POSTS):
        server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number)))
    for number in {*PASSING, STILL_BUSY}:
        server.answer(f"{number}.jpg", web.status(503))
    server.answer(f"{GONE}.jpg", web.status(404))
    posts = [{"id": str(number), "text": "good", "media": [f"{number}.jpg"]} for number in range(NUM_POSTS)]
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(label_command.write_posts(tmp_path / "posts.jsonl", posts)),
        dataset=str(tmp_path / "dataset"),
        base_url=server.base_url,
        posts_per_unit=POSTS_PER_UNIT,
        fetch={"max_tries": 1, "allow_networks": ["127.0.0.0/8"]},
    )
    return [*label_command.LABEL, "--config", str(config)]


def run(command: list[str], ray_folder: Path) -> str:
    done = label_command.run(command, label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def keys(dataset: Path, name: str) -> list[str]:
    with tarfile.open(dataset / name) as tar:
        return [member.removesuffix(".jpg") for member in tar.getnames() if member.endswith(".jpg")]


def test_pictures_that_are_there_now_come_into_shards_of_their_own(command, server, tmp_path, ray_folder):
    dataset = tmp_path / "dataset"
    first = run(command, ray_folder)
    assert "1 http_error" not in first
    assert "5 http_error; --retry-failures tries 4 of them again" in first
    before = label_command.hashes(dataset, "0*")
    for number in PASSING:
        server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number)))
    asked = server.requests.copy()

    again = run([*command, "--retry-failures"], ray_folder)
    assert re.search(r"samples +10\n", again)
    assert "2 http_error; --retry-failures tries 1 of them again" in again
    assert "5 (3 were there before)" in again
    after = label_command.hashes(dataset, "0*")
    assert before.items() <= after.items()
    assert keys(dataset, "000000-retry1.tar") == ["1-0"]
    assert keys(dataset, "000001-retry1.tar") == ["6-0", "7-0"]
    (left,) = map(json.loads, (dataset / "000000-retry1.failures.jsonl").read_text().splitlines())
    assert (left["post_id"], left["http_status"], left["retryable"]) == (str(STILL_BUSY), 503, True)
    # Nothing else was asked for again.
    assert {path for path in server.requests if server.requests[path] > asked[path]} == {
        f"/{number}.jpg" for number in {*PASSING, STILL_BUSY}
    }
    shards = read_dataset(open_storage(str(dataset)))["shards"]
    assert sum(shard["samples"] for shard in shards) == NUM_POSTS - 2

    # A third round takes up what the second left; one that finds nothing leaves nothing.
    nothing = run([*command, "--retry-failures"], ray_folder)
    assert "2 http_error; --retry-failures tries 1 of them again" in nothing
    assert label_command.hashes(dataset, "0*") == after
    server.answer(f"{STILL_BUSY}.jpg", web.content(made.jpeg(seed=STILL_BUSY)))
    last = run([*command, "--retry-failures"], ray_folder)
    assert re.search(r"failures +1 http_error\n", last)
    assert keys(dataset, "000000-retry2.tar") == [f"{STILL_BUSY}-0"]

    # And labelling again finds all of its units there.
    assert "6 (6 were there before)" in run(command, ray_folder)

    # A unit that is to be made again goes with its rounds, which hold samples of it.
    (dataset / "000000.tar").unlink()
    done = label_command.run(command, label_command.environment(ray_folder))
    label_command.assert_told_in_two_lines(done, "000000-retry1.tar", "000000.tar, is not there")
    for path in dataset.glob("000000-retry*"):
        path.unlink()
    run(command, ray_folder)
    assert keys(dataset, "000000.tar") == ["0-0", "1-0", "2-0"]


def test_an_unfinished_dataset_is_finished_first(command, tmp_path, ray_folder):
    done = label_command.run([*command, "--retry-failures"], label_command.environment(ray_folder))
    label_command.assert_told_in_two_lines(done, "dataset", "not finished")
