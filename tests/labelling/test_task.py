import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from xmodal.labelling.task import _AHEAD, drained


class Source:
    """Numbers, and a note of how far it has come and whether it was closed."""

    def __init__(self, error: Exception | None = None, length: int = 1000) -> None:
        self.error, self.length = error, length
        self.num_made = 0
        self.is_closed = False

    async def numbers(self) -> AsyncIterator[int]:
        try:
            for number in range(self.length):
                if number % 10 == 0:
                    await asyncio.sleep(0)
                self.num_made += 1
                yield number
            if self.error:
                raise self.error
        finally:
            await asyncio.sleep(0.01)
            self.is_closed = True


@pytest.mark.parametrize("length", [0, 1, _AHEAD, 1000])
def test_all_items_come_in_order(length):
    source = Source(length=length)
    with drained(source.numbers()) as items:
        assert list(items) == list(range(length))
    assert source.is_closed


def test_an_error_of_the_source_comes_after_its_items():
    source = Source(ValueError("at the end"))
    found = []
    with pytest.raises(ValueError, match="at the end"), drained(source.numbers()) as items:
        found.extend(items)
    assert found == list(range(1000))
    assert source.is_closed


@pytest.mark.parametrize("num_taken", [0, 1, 100])
def test_the_source_works_ahead_so_far_and_no_further(num_taken):
    source = Source()
    with drained(source.numbers()) as items:
        for _ in range(num_taken):
            next(items)
        end = time.monotonic() + 10
        while source.num_made <= num_taken and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        assert num_taken < source.num_made <= num_taken + _AHEAD + 1


@pytest.mark.parametrize("num_taken", [0, 1, 100])
def test_who_stops_early_closes_the_source_and_leaves_no_thread(num_taken):
    source = Source()
    before = threading.active_count()

    def write() -> None:
        with drained(source.numbers()) as items:
            for _ in range(num_taken):
                next(items)
            while not source.num_made:
                time.sleep(0.01)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert source.is_closed
    assert threading.active_count() == before


def test_a_source_that_waits_for_long_is_not_waited_for():
    closed = threading.Event()

    async def waiting() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            closed.set()

    with drained(waiting()) as items:
        assert next(items) == 1
    assert closed.is_set()
