"""`ray job submit` to a real Ray head, on the emoji set: the same shards as `xmodal label` makes by itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import label_command
import pytest

from xmodal.demo.server import serve_folder

BIN = Path(sys.executable).parent
NUM_POSTS = 150


@dataclass(kw_only=True)
class Head:
    """A running Ray head."""

    dashboard: str
    address: str
    environment: dict[str, str]


def free_port() -> int:
    """Outside 10002 to 19999, where Ray puts its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10_002 <= port <= 19_999:
            return port


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Started in a folder of its own: what a worker makes of a relative path is not what the caller meant."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    variables = label_command.environment(folder)
    port, dashboard_port = free_port(), free_port()
    log = open(folder / "head.log", "w+")  # noqa: SIM115  closed below
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", "--object-store-memory=200000000"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}"),
        ],
        env=variables,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_for_answer(dashboard_port, process, folder / "head.log")
        yield Head(dashboard=dashboard, address=f"127.0.0.1:{port}", environment=variables)
    finally:
        # Told to end, `ray start --block` ends what it has started.
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_answer(port: int, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> Iterator[list[str]]:
    """Those of `label`, but for the dataset."""
    posts = tmp_path_factory.mktemp("posts") / "posts.jsonl"
    with open(label_command.ROOT / "data/emoji/posts.jsonl") as source:
        posts.write_text("".join(islice(source, NUM_POSTS)))
    with serve_folder(str(label_command.ROOT / "data/emoji"), 0) as port:
        yield ["--config", "configs/label/demo.yaml", "--posts", str(posts), "--base_url", f"http://127.0.0.1:{port}/"]


@pytest.fixture(scope="module")
def own_ray_dataset(arguments, ray_folder, tmp_path_factory) -> Path:
    """What `xmodal label` makes without a cluster."""
    dataset = tmp_path_factory.mktemp("own") / "dataset"
    command = [*label_command.LABEL, *arguments, "--dataset", str(dataset)]
    done = label_command.run(command, label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr
    return dataset


def submit(head: Head, *arguments: str, variables: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    runtime_environment = json.dumps({"env_vars": variables or {}})
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    command += ["--runtime-env-json", runtime_environment, "--", "python", "launch/label.py", *arguments]
    return label_command.run(command, head.environment)


def test_a_ray_job_makes_the_same_shards_as_a_run_on_its_own_ray(head, arguments, own_ray_dataset, tmp_path):
    done = submit(head, *arguments, "--dataset", str(tmp_path / "dataset"))
    assert done.returncode == 0, done.stdout + done.stderr
    hashes = label_command.hashes(tmp_path / "dataset")
    assert hashes == label_command.hashes(own_ray_dataset)
    assert len([name for name in hashes if name.endswith(".tar")]) == 3


def test_a_relative_dataset_of_a_job_lies_below_xmodal_root(head, arguments, own_ray_dataset, tmp_path):
    done = submit(head, *arguments, "--dataset", "some/dataset", variables={"XMODAL_ROOT": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert label_command.hashes(tmp_path / "some/dataset") == label_command.hashes(own_ray_dataset)
    assert str(tmp_path / "some/dataset") in done.stdout


def test_a_relative_dataset_of_a_driver_lies_in_its_own_folder_not_in_that_of_the_cluster(
    head, arguments, own_ray_dataset, tmp_path
):
    config = str(label_command.ROOT / arguments[1])
    own = ["--config", config, *arguments[2:], "--dataset", "some/dataset", "--ray_address", head.address]
    done = label_command.run([*label_command.LABEL, *own], head.environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert label_command.hashes(tmp_path / "some/dataset") == label_command.hashes(own_ray_dataset)


def test_a_job_with_a_mistake_fails_with_two_lines(head, tmp_path):
    done = submit(head, "--config", "configs/label/demo.yaml", "--posts", str(tmp_path / "none.jsonl"))
    assert done.returncode != 0
    assert f"xmodal: {tmp_path}/none.jsonl: no such file" in done.stdout
    assert "Traceback" not in done.stdout
