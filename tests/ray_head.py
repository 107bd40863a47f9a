"""A real Ray head on this machine, ended by pid."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import label_command

BIN = Path(sys.executable).parent


@dataclass(kw_only=True)
class Head:
    """A running Ray head."""

    dashboard: str
    address: str
    metrics: str
    """URL of its Prometheus endpoint."""
    environment: dict[str, str]


def free_port() -> int:
    """Outside 10002 to 19999, where Ray puts its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10_002 <= port <= 19_999:
            return port


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[Head]:
    """Started in a folder of its own: what a worker makes of a relative path is not what the caller meant."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    variables = label_command.environment(folder)
    port, dashboard_port, metrics_port = free_port(), free_port(), free_port()
    log = open(folder / "head.log", "w+")  # noqa: SIM115  closed below
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", "--object-store-memory=200000000"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}"),
            f"--metrics-export-port={metrics_port}",
        ],
        env=variables,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for_answer(dashboard_port, process, folder / "head.log")
        yield Head(
            dashboard=f"http://127.0.0.1:{dashboard_port}",
            address=f"127.0.0.1:{port}",
            metrics=f"http://127.0.0.1:{metrics_port}/metrics",
            environment=variables,
        )
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
