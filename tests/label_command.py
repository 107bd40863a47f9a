"""Runs `xmodal label` as people do: in a process of its own, on a Ray of its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from xmodal import cli

ROOT = Path(__file__).resolve().parent.parent
LABEL = (sys.executable, "-m", "xmodal.cli", "label")
LOOPBACK = ["127.0.0.0/8"]
"""For `fetch.allow_networks`: where the web servers of the tests are."""
ALLOW_LOOPBACK = f"--fetch.allow_networks={json.dumps(LOOPBACK)}"


def environment(ray_folder: Path, **variables: str) -> dict[str, str]:
    """That of the tests, but with no cluster named in it, and Ray's files in `ray_folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XMODAL_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "RAY_TMPDIR": str(ray_folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    # A head asks for a token if one lies in the user's home, where the first run of a local Ray puts it.
    own["RAY_AUTH_MODE"] = "disabled"
    return inherited | own | variables


def run(
    command: Sequence[str], variables: Mapping[str, str], *, folder: Path = ROOT, seconds: float = 150
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; after `seconds`, end it and all of its session."""
    process = subprocess.Popen(
        command,
        env=variables,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def write_config(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def write_posts(path: Path, posts: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(post) + "\n" for post in posts))
    return path


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """File name → sha256, for comparing folders byte for byte. Hidden files count too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def assert_told_in_two_lines(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("xmodal: ")
    for word in words:
        assert word in lines[0]


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], complaint: str) -> None:
    """In two lines, by `xmodal label` in this process, which needs not start first."""
    assert cli.main(["label", *arguments]) == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("xmodal: ")
    assert complaint in first
