"""`xmodal label` killed in the middle, with all of its Ray, and run again."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import label_command
import made_pictures as made
import psutil
import pytest
import web_server as web

NUM_POSTS, POSTS_PER_UNIT = 48, 4


def in_own_process_namespace() -> list[str]:
    """A prefix for a command: when it is killed, so is whatever it started."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare, to end a killed run's Ray with it")
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def tars(dataset: Path) -> dict[str, tuple[int, int]]:
    """Name → inode and time of change, which a tar that is written again would change."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dataset.glob("*.tar")}


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_ends_again_and_again_is_told_and_the_same_command_goes_on(server, tmp_path, ray_folder):
    url = server.answer("slow.jpg", web.after(60, web.content(made.jpeg())))
    other = server.answer("other.jpg", web.content(made.jpeg()))
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": "good", "media": [one]} for number, one in enumerate([url, other])],
    )
    command = [
        *(*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'dataset'}"),
        *(label_command.ALLOW_LOOPBACK, "--posts_per_unit=1", "--max_units_in_flight=1"),
    ]
    variables = label_command.environment(ray_folder)
    with subprocess.Popen(
        command, cwd=label_command.ROOT, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        try:
            deadline, num_killed = time.monotonic() + 120, 0
            while driver.poll() is None:
                assert time.monotonic() < deadline
                for process in psutil.Process(driver.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        is_first = not (tmp_path / "dataset" / "000001.tar").exists() and num_killed < 6
                        if is_first and process.cmdline()[:1] == ["ray::_run_job"]:
                            process.kill()
                            process.wait()
                            num_killed += 1
                time.sleep(0.1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
        assert driver.stderr
        told = driver.stderr.read().splitlines()
    assert driver.returncode == 2, told
    assert [line for line in told if "Traceback" in line] == []
    assert any("units that an error ended: 1; the first is 000000: WorkerCrashedError" in line for line in told), told
    # It costs itself alone.
    assert [path.name for path in (tmp_path / "dataset").glob("*.tar")] == ["000001.tar"]
    server.answer("slow.jpg", web.content(made.jpeg()))
    again = label_command.run(command, variables)
    assert again.returncode == 0, again.stderr
    assert sorted(path.name for path in (tmp_path / "dataset").glob("*.tar")) == ["000000.tar", "000001.tar"]


def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_bytes(server, tmp_path, ray_folder):
    prefix = in_own_process_namespace()
    pictures = {f"{number}.jpg": web.content(made.jpeg(seed=number)) for number in range(NUM_POSTS)}
    for number, (name, picture) in enumerate(pictures.items()):
        # All but the first two units are slow, so that there is a middle to be killed in.
        server.answer(name, web.after(1, picture) if number >= 2 * POSTS_PER_UNIT else picture)
    posts = [
        {"id": str(number), "text": f"a good day {number}", "media": [f"{number}.jpg", "none.jpg"]}
        for number in range(NUM_POSTS)
    ]
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(label_command.write_posts(tmp_path / "posts.jsonl", posts)),
        dataset=str(tmp_path / "killed"),
        base_url=server.base_url,
        posts_per_unit=POSTS_PER_UNIT,
        fetch={"max_concurrent": 1, "allow_networks": label_command.LOOPBACK},
    )
    command = [*label_command.LABEL, "--config", str(config)]
    variables = label_command.environment(ray_folder)
    dataset = tmp_path / "killed"

    process = subprocess.Popen(
        [*prefix, *command], cwd=label_command.ROOT, env=variables, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(list(dataset.glob("*.tar"))) >= 2 and list(dataset.glob(".tmp-*.tar-*")), process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(0.5)  # the kernel ends the processes of the namespace after it ended the first
    committed = tars(dataset)
    assert 2 <= len(committed) < NUM_POSTS // POSTS_PER_UNIT
    assert not (dataset / "dataset.json").exists()
    assert list(dataset.glob(".tmp-*.tar-*"))
    requests = server.requests.copy()
    for name, picture in pictures.items():
        server.answer(name, picture)

    again = label_command.run(command, variables)
    assert again.returncode == 0, again.stderr
    assert f"{NUM_POSTS // POSTS_PER_UNIT} ({len(committed)} were there before)" in again.stdout
    assert committed.items() <= tars(dataset).items()
    for name in committed:
        number = int(name.removesuffix(".tar")) * POSTS_PER_UNIT
        assert server.requests[f"/{number}.jpg"] == requests[f"/{number}.jpg"]

    undisturbed = label_command.run([*command, "--dataset", str(tmp_path / "undisturbed")], variables)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert label_command.hashes(dataset) == label_command.hashes(tmp_path / "undisturbed")
    assert len(tars(dataset)) == NUM_POSTS // POSTS_PER_UNIT
