"""A folder that is treated as if it was far away: for what is to be seen request by request."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from shards.storage import LocalStorage


class Faraway(LocalStorage):
    """Counts how often each object is read whole, and in part."""

    is_local = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, create=True)
        self.reads: Counter = Counter()
        self.range_reads: Counter = Counter()
        self.on_chunk: Callable[[], None] = int

    def chunks(self, name: str) -> Iterator[bytes]:
        self.reads[name] += 1
        for chunk in super().chunks(name):
            self.on_chunk()
            yield chunk

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        self.range_reads[name] += 1
        return super().read_range(name, offset, length)
