"""Files that may be compressed, by gzip or zstd, read as one stream; one that is cut off is an error, not an end."""

import gzip
import io
import zlib
from typing import Any, BinaryIO

import zstandard

COMPRESSION_ENDINGS = (".gz", ".zst")
BROKEN_FILE_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading raises where a compressed file is cut off or was changed."""


def open_posts(path: str) -> BinaryIO:
    """What a file holds, plain or unpacked, by the ending of its name."""
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path))
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """What a zstd file of any number of frames holds. zstandard's own reader takes one that is cut off for whole."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  closed with this one
        # Public dumps of posts are packed with `--long=31`; the default refuses windows above 128 MiB.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._content = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (length := self._content.readinto(buffer)):
            # Little at a time: what comes out of it is held at once, and may be thousands of times as much.
            self._packed = self._packed or self._file.read(1 << 12)
            if not self._packed:
                if self._frame:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._content = io.BytesIO(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return length

    def close(self) -> None:
        self._file.close()
        super().close()
