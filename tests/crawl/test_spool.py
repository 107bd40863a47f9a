import os

from hypothesis import given
from hypothesis import strategies as st

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
