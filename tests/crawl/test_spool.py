import os
import resource
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from xmodal.crawl.spool import Spool


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


@pytest.fixture
def a_full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("a_full_disk")
def test_a_full_disk_is_told():
    spool = Spool(0)
    with pytest.raises(UserError, match="where pictures wait for slower ones"):
        spool.put(bytes(2000))


def test_a_folder_of_temporary_files_that_takes_none_is_told(monkeypatch, tmp_path):
    # Root may write anywhere, but not into a folder that is not there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: No such file or directory"):
        Spool(0)
