"""`xmodal label --status`: how far a run is, by what lies in its dataset."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import label_command
import made_pictures as made
import pytest
import s3_servers
import web_server as web

from shards.errors import UserError
from shards.storage import LocalStorage
from xmodal.labelling.progress import InputCounts, Progress, status_text
from xmodal.labelling.task import UnitResult

STATUS = {
    "state": "running",
    "started": 1000,
    "updated": 1100,
    "posts_read": 500,
    "share_read": 0.25,
    "units_in_flight": 4,
    "units_committed": 7,
    "units_waiting": 0,
    "samples": 650,
    "bytes": 5 << 20,
    "failures": {"http_error": 3, "timeout": 1},
}


def test_a_running_run_is_told_with_its_rate():
    told = status_text("/data/set", STATUS, 9, now=1110.0)
    assert told.splitlines()[0] == "/data/set: running"
    assert "500 (25.0% of the input)" in told
    assert "7 committed, 4 in flight" in told
    assert "650 (6.5 a second), 5 MiB" in told
    assert "3 http_error, 1 timeout" in told


def test_a_run_that_is_silent_for_long_is_said_to_be():
    assert "not heard of for 900 s" in status_text("/data/set", STATUS, 9, now=2000.0)


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"state": "running", "started": "now"}'])
def test_a_status_that_is_none_is_told_in_two_lines(tmp_path, capsys, content):
    (tmp_path / "status.json").write_text(content)
    label_command.assert_refused(capsys, ["--status", str(tmp_path)], "status.json")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), UserError("no", "way"), FileNotFoundError()])
def test_a_status_that_cannot_be_written_ends_no_run(error, tmp_path):
    class Broken(LocalStorage):
        def replace(self, name: str, content: bytes) -> None:
            raise error

    with Progress(Broken(tmp_path), "unit", InputCounts()) as progress:
        progress.ended(UnitResult(name="000000", is_committed=True))
        progress.ended(UnitResult(name="000001", is_committed=False, broken="ValueError: no"))
    assert progress.broken == ["000001: ValueError: no"]


def test_a_run_tells_that_it_is_there_to_its_very_end(tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.labelling.progress._STATUS_SECONDS", 0.01)
    file = tmp_path / "status.json"
    with Progress(LocalStorage(tmp_path), "unit", InputCounts()) as progress:
        assert json.loads(file.read_text())["state"] == "running"
        progress.finishing()
        for _ in range(2):
            file.unlink()
            deadline = time.monotonic() + 60
            while not file.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert json.loads(file.read_text())["state"] == "finishing"
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError), Progress(LocalStorage(tmp_path), "unit", InputCounts()):
        raise UserError("what", "remedy")
    assert json.loads(file.read_text())["state"] == "stopped"


def status(dataset: str, variables: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return label_command.run([*label_command.LABEL, "--status", dataset], variables)


@pytest.fixture(params=["folder", "s3"])
def dataset_and_variables(request, tmp_path, ray_folder) -> Iterator[tuple[str, dict[str, str]]]:
    """A dataset that is not there yet, and the environment of who makes it and who asks for it."""
    if request.param == "folder":
        yield str(tmp_path / "dataset"), label_command.environment(ray_folder)
    else:
        with s3_servers.moto() as endpoint:
            variables = label_command.environment(ray_folder, **s3_servers.environment(endpoint))
            yield f"s3://{s3_servers.BUCKET}/status/dataset", variables


def test_a_dataset_tells_how_far_its_run_is_while_it_runs_and_that_it_is_finished_after(
    server, tmp_path, dataset_and_variables
):
    dataset, variables = dataset_and_variables
    release = time.monotonic() + 600

    def answer(handler) -> None:
        while time.monotonic() < release and not server.stopping.is_set():
            time.sleep(0.05)
        web.content(made.jpeg())(handler)

    server.answer("slow.jpg", answer)
    server.answer("fast.jpg", web.content(made.jpeg()))
    media = ["fast.jpg", "slow.jpg"]
    posts = [{"id": str(number), "text": "good", "media": [name]} for number, name in enumerate(media)]
    command = [*label_command.LABEL, f"--posts={label_command.write_posts(tmp_path / 'posts.jsonl', posts)}"]
    command += [f"--dataset={dataset}", f"--base_url={server.base_url}", "--posts_per_unit=1"]
    command += [label_command.ALLOW_LOOPBACK]
    label_command.assert_told_in_two_lines(status(dataset, variables), dataset)
    with subprocess.Popen(
        command, cwd=label_command.ROOT, env=variables, start_new_session=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 90
            while "1 committed, 1 in flight" not in (told := status(dataset, variables)).stdout:
                assert process.poll() is None
                assert time.monotonic() < deadline, told
                time.sleep(0.5)
            assert told.stdout.startswith(f"{dataset}: running\n")
            release = 0.0
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert status(dataset, variables).stdout == f"{dataset}: finished, 2 shards\n"


def on_a_terminal(command: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Run a command to its end. Returns its exit code and what the terminal was told."""
    terminal, side_of_command = pty.openpty()
    fcntl.ioctl(side_of_command, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    told: list[bytes] = []

    def read() -> None:
        # At its end a terminal is an error on Linux, and empty elsewhere.
        with suppress(OSError):
            while piece := os.read(terminal, 1 << 16):
                told.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    process = subprocess.Popen(
        command, cwd=label_command.ROOT, env=variables, stderr=side_of_command, stdout=subprocess.DEVNULL
    )
    os.close(side_of_command)
    try:
        code = process.wait(150)
        reader.join(30)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    return code, b"".join(told).decode()


def test_the_bar_of_a_run_that_goes_on_counts_the_units_that_are_left(tmp_path, ray_folder):
    (tmp_path / "a.jpg").write_bytes(made.jpeg())
    # Long ones: a file is read in pieces, of which a unit is to take many. The lexicon would take a second for as many
    # words.
    posts = [{"id": str(number), "text": "good day " + 9000 * "x", "media": ["a.jpg"]} for number in range(120)]
    dataset = tmp_path / "dataset"
    command = [*label_command.LABEL, f"--posts={label_command.write_posts(tmp_path / 'posts.jsonl', posts)}"]
    command += [f"--dataset={dataset}", f"--media_folder={tmp_path}", "--posts_per_unit=10", "--max_units_in_flight=1"]
    variables = label_command.environment(ray_folder)
    code, told = on_a_terminal(command, variables)
    assert code == 0, told
    assert set(totals(told)) == {12}
    for path in dataset.iterdir():
        if path.name == "dataset.json" or path.name.startswith(("000009", "000010", "000011")):
            path.unlink()
    code, told = on_a_terminal(command, variables)
    assert code == 0, told
    assert set(totals(told)) == {3}


def totals(told: str) -> list[int]:
    """Of how many units the bar speaks."""
    return [int(total) for total in re.findall(r"\d+/(\d+) \[", told)]
