"""`xmodal collect` as a process: killed in the middle, told to stop, refused."""

import signal
import subprocess
import time

import collecting
import pytest
from collecting import collected, events, ids


def wait_for(condition, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written_posts(folder) -> int:
    """Posts in the growing file that are durable."""
    from xmodal.collecting.frames import read_lines

    return sum(len(list(read_lines(part))) for part in folder.glob(".*.part") if part.name != ".state.json.part")


@pytest.fixture
def config(source, service, tmp_path):
    return collecting.settings(source, service.url, tmp_path / "posts")


def test_a_killed_collection_goes_on_without_a_gap_or_a_double(source, service, config, tmp_path):
    folder = tmp_path / "posts"
    process = collecting.start(tmp_path, config)
    try:
        service.feed.wait_for_streams(1, seconds=120)
        service.feed.publish(*events(source, 1, 2, 3))
        wait_for(lambda: written_posts(folder) >= 1 and (folder / "state.json").exists(), process)
        service.feed.publish(*events(source, 4, 5, 6))
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list(folder.glob("*.jsonl.zst"))
    (part,) = folder.glob(f".{source}-*.part")
    with open(part, "ab") as file:
        file.write(b"\x28\xb5\x2f\xfd torn")  # what a frame that was being written would leave
    service.feed.publish(*events(source, 7, 8))
    collecting.run(source, service.url, folder, max_posts=8 - written_posts(folder))
    assert sorted(collected(folder)) == sorted(ids(source, *range(1, 9)))
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_collection_cleanly(source, service, config, tmp_path, number):
    folder = tmp_path / "posts"
    process = collecting.start(tmp_path, config)
    try:
        service.feed.wait_for_streams(1, seconds=120)
        service.feed.publish(*events(source, 1, 2))
        wait_for(lambda: written_posts(folder) == 2, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "posts written  2" in output
    assert collected(folder) == ids(source, 1, 2)
    assert not list(folder.glob(".*.part"))
    if source == "bluesky":
        assert collecting.state(folder)["cursor"] == {"time_us": events(source, 2)[0]["time_us"]}


@pytest.mark.parametrize("source", ["x"])
def test_a_bad_token_is_told_in_two_lines(config, tmp_path):
    process = collecting.start(tmp_path, config, X_BEARER_TOKEN="wrong-secret")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 2, errors
    assert "X_BEARER_TOKEN" in errors
    assert "wrong-secret" not in errors


@pytest.mark.parametrize("source", ["bluesky"])
def test_a_full_disk_is_told_and_what_did_not_fit_comes_again(source, service, config, tmp_path):
    folder = tmp_path / "posts"
    config["files"]["flush_seconds"] = 0.2
    process = collecting.start(tmp_path, config, *["prlimit", "--fsize=3000"])
    try:
        service.feed.wait_for_streams(1, seconds=120)
        service.feed.publish(*events(source, 1))
        wait_for((folder / "state.json").exists, process)
        service.feed.publish(*events(source, *range(2, 400)))
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2, errors
    assert "cannot be written" in errors
    collecting.run(source, service.url, folder, max_posts=399 - written_posts(folder))
    assert sorted(collected(folder)) == sorted(ids(source, *range(1, 400)))
