import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from xmodal.crawl.spool import Spool

ROOT = Path(__file__).parents[2]


@given(contents=st.lists(st.binary(max_size=50), max_size=30), limit=st.integers(0, 200), order=st.randoms())
def test_every_content_comes_back_whatever_the_order(contents, limit, order):
    spool = Spool(limit)
    kept = [(content, spool.put(content)) for content in contents]
    order.shuffle(kept)
    for content, take in kept:
        assert take() == content
    again = spool.put(b"after all were taken")
    assert again() == b"after all were taken"
    spool.close()


def test_what_is_beyond_the_limit_lies_on_disk_until_it_is_taken():
    spool = Spool(1000)
    size = lambda: os.fstat(spool._file.fileno()).st_size  # noqa: E731
    first = spool.put(bytes(900))
    assert size() == 0
    second, third = spool.put(bytes(900)), spool.put(bytes(900))
    assert size() == 1800
    assert first() == second() == third() == bytes(900)
    assert size() == 0


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from xmodal.cli import run_verb
from xmodal.crawl.spool import Spool
raise SystemExit(run_verb(lambda _: Spool(0).put(bytes(2000)), []))
"""
"""Where no file may grow beyond 1,000 bytes; in a process of its own, whose output goes to pipes."""


def test_a_full_disk_is_told():
    done = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    problem, remedy = done.stderr.splitlines()
    assert problem.endswith("File too large, where pictures wait for slower ones")
    assert "TMPDIR" in remedy


def test_a_folder_of_temporary_files_that_takes_none_is_told(monkeypatch, tmp_path):
    # Root may write anywhere, but not into a folder that is not there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: No such file or directory"):
        Spool(0)
