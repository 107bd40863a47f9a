"""What a user names → pictures, one after the other, in the same order each time.

Files, folders, `s3://` prefixes and objects, tars of samples (a dataset, or a pattern as webdataset takes it), views.
What memory holds is a view's table, the index of one tar, and the names in one local folder and in those above it.
"""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from shards.errors import UserError
from shards.index import DamagedTarError, index_name, read_index
from shards.inspection import find_shards
from shards.storage import CorruptObjectError, Storage, open_storage
from shards.view import open_view
from xmodal.benchmarks import PICTURE_SUFFIXES

log = logging.getLogger(__name__)

_PLACES = ["key", "image_offset", "image_length", "image_crc32"]
_MAX_CORRUPT_READS = 3
_ROWS_AT_A_TIME = 1 << 12
_VIEW_FILE = "view.json"
_NAMES_LOOKED_AT = 1000
"""Of a folder, to tell whether it holds tars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that an input holds, to be read when its turn comes; also, as a failure, a tar that cannot be read, and
    a folder that cannot be listed.
    """

    path: str
    """A file, an object's URL, or the tar that the picture is in; of a name that is not UTF-8, what can be written."""
    key: str | None = None
    """Of its sample in that tar."""
    storage: Storage
    name: str
    """In the storage."""
    place: tuple[int, int, int] | None = None
    """Offset, length and crc32 in the tar; None for a whole object."""
    damage: str | None = None
    """What of a tar or a folder is known to be wrong."""

    @property
    def is_remote(self) -> bool:
        """Whether reading it means to wait for a network."""
        return not self.storage.is_local

    def read(self) -> bytes:
        """Its encoded bytes. Raises OSError."""
        if self.damage:
            raise OSError(self.damage)
        if self.place is None:
            return self.storage.read(self.name)
        offset, length, crc32 = self.place
        for _ in range(_MAX_CORRUPT_READS if self.is_remote else 1):
            content = self.storage.read_range(self.name, offset, length)
            if zlib.crc32(content) == crc32:
                return content
        raise CorruptObjectError("its bytes are not those that were indexed")


def pictures_of(inputs: Sequence[str], split: str | None = None) -> Iterator[Picture]:
    """All pictures of some inputs, those of a folder by their paths, those of a shard in its order.

    Of a view those of one split, or of all. Raises UserError for an input that is not there or holds none, when its
    turn comes: `check_inputs` does before.
    """
    for one in inputs:
        yield from _pictures_of(one, split)


def check_inputs(inputs: Sequence[str], split: str | None = None) -> None:
    """Raise UserError for an input that holds no picture. It is looked at as far as its first.

    Of a folder with both tars and other pictures it is told which of them are left out.
    """
    for one in inputs:
        if next(_pictures_of(one, split, tell=True), None) is None:
            raise UserError(f"{one}: no picture lies there", f"pictures end with {', '.join(sorted(PICTURE_SUFFIXES))}")


def _pictures_of(url: str, split: str | None, *, tell: bool = False) -> Iterator[Picture]:
    try:
        return _open(url, split, tell=tell)
    except OSError as error:
        raise UserError(
            f"{url}: cannot be looked into: {error.strerror or error}", "see to its permissions, or leave it out"
        ) from error


def _open(url: str, split: str | None, *, tell: bool) -> Iterator[Picture]:
    url = url.removeprefix("file://")
    url = url.rstrip("/") or url  # or paths below it would have two slashes
    is_here = "://" not in url
    if is_here and not url.endswith(".tar") and not os.path.isfile(url) and not os.path.isdir(url):
        raise UserError(f"{url}: no such file or folder", "check the path; a pattern of tars ends with .tar")
    if split is not None and not _is_view(url):
        raise UserError(
            f"split: {split}: {url} is no view, so it has no splits", "leave split out, or give views alone"
        )
    if url.endswith(".tar"):
        return _in_shards(url)
    if is_here and os.path.isfile(url):
        folder, name = os.path.split(url)
        return iter([Picture(path=_text(url), storage=open_storage(folder or "."), name=name)])
    if not is_here and _is_picture(url):
        folder, _, name = url.rpartition("/")
        storage = open_storage(folder)
        if storage.exists(name):
            return iter([Picture(path=url, storage=storage, name=name)])
    storage = open_storage(url)
    if storage.exists(_VIEW_FILE):
        return _in_view(url, split)
    return _in_shards(url) if _is_dataset(storage, tell=tell) else _in_folder(storage)


def _is_dataset(storage: Storage, *, tell: bool) -> bool:
    """Whether it is tars of samples that a folder is about: they have an index, or there are no pictures but in them.

    Where there are both, what is left out is told, if that is wanted.
    """
    # A prefix of millions of pictures is not listed to its end only to find that no tar is among them.
    names = set(islice(storage.names_below(), _NAMES_LOOKED_AT))
    tars = [name for name in names if name.endswith(".tar") and "/" not in name]
    if not tars or not any(map(_is_picture, names)):
        return bool(tars)
    is_dataset = any(index_name(tar) in names for tar in tars)
    if tell:
        left_out = "the pictures that are in none of its tars" if is_dataset else "its tars, which have no index,"
        kind = "a dataset" if is_dataset else "a folder of pictures"
        log.warning("%s: read as %s; %s are left out: to have them, name them too", storage.url, kind, left_out)
    return is_dataset


def _is_view(url: str) -> bool:
    is_folder = "://" in url or os.path.isdir(url)
    return is_folder and not url.endswith(".tar") and open_storage(url).exists(_VIEW_FILE)


def _in_folder(storage: Storage) -> Iterator[Picture]:
    for name in storage.names_below():
        path = _text(f"{storage.url}/{name}")
        if name.endswith("/"):
            yield Picture(path=path, storage=storage, name=name, damage="this folder cannot be listed")
        elif _is_picture(name):
            yield Picture(path=path, storage=storage, name=name)


def _in_shards(url: str) -> Iterator[Picture]:
    shards = find_shards(url)
    for name in shards.names:
        path = f"{shards.storage.url}/{name}"
        try:
            index = read_index(shards.storage, name, keep=False, columns=_PLACES)
        except DamagedTarError as error:
            yield Picture(path=path, storage=shards.storage, name=name, damage=error.damage)
        except FileNotFoundError:
            raise UserError(f"{path}: no such shard", "check the URL") from None
        except OSError as error:
            yield Picture(path=path, storage=shards.storage, name=name, damage=str(error))
        else:
            yield from _rows(index, shards.storage, path, name)


def _in_view(url: str, split: str | None) -> Iterator[Picture]:
    view = open_view(url)
    table = view.table if split is None else view.split(split).rows
    for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
        rows = table.slice(start, _ROWS_AT_A_TIME)
        for (dataset, shard), part in _runs(rows):
            storage = view.datasets[dataset]
            yield from _rows(part, storage, f"{storage.url}/{shard}", shard)


def _runs(rows: pa.Table) -> Iterator[tuple[tuple[int, str], pa.Table]]:
    """Neighbouring rows of one shard, together."""
    places = list(zip(rows["dataset"].to_pylist(), rows["shard"].to_pylist(), strict=True))
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[start]:
            yield places[start], rows.slice(start, end - start)
            start = end


def _rows(rows: pa.Table, storage: Storage, path: str, name: str) -> Iterator[Picture]:
    for row in rows.select(_PLACES).to_pylist():
        place = (row["image_offset"], row["image_length"], row["image_crc32"])
        yield Picture(path=path, key=row["key"], storage=storage, name=name, place=place)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _text(path: str) -> str:
    """A path whose bytes, perhaps no UTF-8, can be written into any file."""
    return os.fsencode(path).decode(errors="replace")
