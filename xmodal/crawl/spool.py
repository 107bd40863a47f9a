"""Where pictures wait for an earlier one that is slow: in memory, and beyond a limit on disk."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shards.errors import UserError


class Spool:
    """Keeps contents until they are taken, each once. Its file has no name and goes away with it.

    Raises UserError where the folder of temporary files takes none, or no more.
    """

    def __init__(self, max_memory_bytes: int) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._memory_bytes = self._file_end = self._num_in_file = 0
        with _telling_of_the_folder():
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by `close`

    @property
    def is_full(self) -> bool:
        """Whether what comes next may go to disk."""
        return self._memory_bytes >= self._max_memory_bytes // 2 or self._num_in_file > 0

    def put(self, content: bytes) -> Callable[[], bytes]:
        """Keep a content; returns what takes it back."""
        if self._memory_bytes + len(content) <= self._max_memory_bytes:
            self._memory_bytes += len(content)
            return lambda: self._from_memory(content)
        start, length = self._file_end, len(content)
        with _telling_of_the_folder():
            _write_all(self._file.fileno(), content, start)
        self._file_end += length
        self._num_in_file += 1
        # Not `len(content)` in there: it would keep the content in memory.
        return lambda: self._from_file(start, length)

    def close(self) -> None:
        """Give the disk's space back."""
        self._file.close()

    def _from_memory(self, content: bytes) -> bytes:
        self._memory_bytes -= len(content)
        return content

    def _from_file(self, start: int, length: int) -> bytes:
        content = _read_all(self._file.fileno(), length, start)
        self._num_in_file -= 1
        if not self._num_in_file:
            self._file.truncate(0)
            self._file_end = 0
        return content


@contextmanager
def _telling_of_the_folder() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()}: {error.strerror}, where pictures wait for slower ones",
            "make room there, or name another folder in TMPDIR, on all nodes; the same command goes on",
        ) from None


def _write_all(file: int, content: bytes, start: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], start + written)


def _read_all(file: int, length: int, start: int) -> bytes:
    content = os.pread(file, length, start)
    assert len(content) == length
    return content
