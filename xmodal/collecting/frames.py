"""A file of lines that grows by whole zstd frames, so that what a crash leaves of it can be told from what it tore."""

import os
from collections.abc import Iterator
from pathlib import Path

import zstandard

_CHUNK = 1 << 16


class FrameFile:
    """Lines wait in memory until `flush` makes a frame of them; any number of frames is one zstd file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_lines = 0
        self.num_bytes = 0
        """In the file; what waits is not counted."""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._file = open(path, "xb")  # noqa: SIM115  closed by close()

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory, not compressed yet."""
        return self._waiting_bytes

    def add(self, line: bytes) -> None:
        """Take one line, without its newline."""
        self._waiting.append(line)
        self._waiting_bytes += len(line) + 1
        self.num_lines += 1

    def flush(self) -> None:
        """Write what waits as one frame; once this returns, no crash loses it."""
        if not self._waiting:
            return
        # The checksum: after a power cut, a file may have its length and yet not its content.
        frame = zstandard.ZstdCompressor(level=6, write_checksum=True).compress(b"\n".join(self._waiting) + b"\n")
        self._file.write(frame)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_bytes += len(frame)
        self._waiting, self._waiting_bytes = [], 0

    def close(self) -> None:
        """Close the file. What still waits is dropped."""
        self._waiting, self._waiting_bytes = [], 0
        self._file.close()


def cut_to_whole_frames(path: Path) -> int:
    """Drop what follows the last whole frame. Returns how many bytes are left."""
    length = 0
    for end, _ in _frames(path):
        length = end
    os.truncate(path, length)
    return length


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of the whole frames, without their newlines."""
    for _, content in _frames(path):
        yield from content.splitlines()


def _frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each whole frame ends, and what it holds. A frame is as large as one flush: it is held at once."""
    end = 0
    with open(path, "rb") as file:
        packed = file.read(_CHUNK)
        while packed:
            frame = zstandard.ZstdDecompressor().decompressobj()
            parts: list[bytes] = []
            try:
                while packed and not frame.eof:
                    parts.append(frame.decompress(packed))
                    end += len(packed) - len(frame.unused_data)
                    packed = frame.unused_data or file.read(_CHUNK)
            except zstandard.ZstdError:
                return
            if not frame.eof:
                return
            yield end, b"".join(parts)
