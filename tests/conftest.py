"""Fixtures that several folders share; being here, it also puts tests/ on the path, for the helpers beside it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import slurm_cluster
import web_server

# No test asks the internet for a model. Read once, when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"


# A busy machine may take long over any one example; the tests' own timeout is what ends those that hang.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def server() -> Iterator[web_server.WebServer]:
    """A web server on a free port, to be told how to answer."""
    with web_server.serving() as running:
        yield running


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may look into; that of `tmp_path` is this user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="public-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for above, folders, _ in os.walk(folder):
        for name in folders:
            os.chmod(os.path.join(above, name), 0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """Where the Rays of the tests keep their files; short, since the names of sockets are at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def slurm() -> Iterator[slurm_cluster.Slurm]:
    """A SLURM of two nodes."""
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with slurm_cluster.start_slurm(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)
