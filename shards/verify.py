"""Reading every member of a shard once, and saying what is broken: for shards made here, and for any WebDataset."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from shards.decode import UndecodableImageError, decode_rgb
from shards.index import (
    IMAGE_EXTENSIONS,
    INDEX_VERSION,
    index_metadata,
    index_name,
    key_and_extension,
    stored_index,
    tar_members,
)
from shards.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is broken."""

    shard: str
    key: str | None
    """The sample's key; None where it is the shard as a whole."""
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.what) if part)


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a shard holds, as far as it could be read."""

    name: str
    bytes: int
    samples: int
    """Samples with a picture that decodes."""
    problems: list[Problem]


def verify_shard(storage: Storage, name: str, sha256: str | None = None) -> ShardReport:
    """Read a tar whole and look at each of its members. `sha256` is what it should be, where that is known.

    Raises FileNotFoundError if there is no such tar, and OSError where the storage cannot give all of it.
    """
    tar = storage.read(name)
    actual = hashlib.sha256(tar).hexdigest()
    problems = [Problem(shard=name, key=key, what=what) for key, what in _problems_of_tar(tar)]
    if sha256 not in (None, actual):
        problems.insert(0, Problem(shard=name, key=None, what=f"its sha256 is {actual}, and should be {sha256}"))
    index = stored_index(storage, name)
    if index is not None and index_metadata(index).get("tar_sha256") != actual:
        problems.append(Problem(shard=name, key=None, what=f"{index_name(name)} is the index of another tar"))
    elif index is not None and index_metadata(index).get("index_version") != INDEX_VERSION:
        problems.append(Problem(shard=name, key=None, what=f"{index_name(name)} is of another version"))
    broken = {problem.key for problem in problems if problem.key is not None}
    keys = {key for key, extensions in _keys(tar) if extensions & set(IMAGE_EXTENSIONS)}
    return ShardReport(name=name, bytes=len(tar), samples=len(keys - broken), problems=problems)


def _keys(tar: bytes) -> Iterator[tuple[str, set[str]]]:
    """Keys in the order of the tar, with their extensions, up to where it can be read."""
    found: dict[str, set[str]] = {}
    try:
        for name, _, _ in tar_members(tar):
            key, extension = key_and_extension(name)
            found.setdefault(key, set()).add(extension)
    except (tarfile.TarError, EOFError):
        pass  # told by `_problems_of_tar`
    yield from found.items()


def _problems_of_tar(tar: bytes) -> Iterator[tuple[str | None, str]]:
    """Key (None for the whole) and what is wrong, in the order of the members."""
    ended: set[str] = set()
    extensions: set[str] = set()
    last_key: str | None = None
    try:
        for name, offset, length in tar_members(tar):
            key, extension = key_and_extension(name)
            if key != last_key:
                yield from _problems_of_sample(last_key, extensions)
                if key in ended:
                    yield key, "stands in several places of the tar, which readers take for several samples"
                ended.add(key)
                last_key, extensions = key, set()
            if extension in extensions:
                yield key, f"has two members .{extension}"
            extensions.add(extension)
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                yield key, f"its member {name!r} would be unpacked outside of the folder it is unpacked in"
            yield from ((key, what) for what in _problems_of_member(extension, tar[offset : offset + length]))
    except (tarfile.TarError, EOFError) as error:
        yield None, f"not a whole tar file: {error}"
    yield from _problems_of_sample(last_key, extensions)


def _problems_of_sample(key: str | None, extensions: set[str]) -> Iterator[tuple[str | None, str]]:
    if key is not None and not extensions & set(IMAGE_EXTENSIONS):
        yield key, f"has no picture, only {', '.join('.' + one for one in sorted(extensions))}"


def _problems_of_member(extension: str, content: bytes) -> Iterator[str]:
    if extension in IMAGE_EXTENSIONS:
        try:
            decode_rgb(content)
        except UndecodableImageError as error:
            yield f".{extension} cannot be decoded: {error}"
    elif extension == "json":
        try:
            if not isinstance(json.loads(content), dict):
                yield ".json holds no object"
        except (ValueError, RecursionError) as error:
            yield f".json is not JSON: {error}"
    elif extension == "txt":
        try:
            content.decode()
        except UnicodeDecodeError as error:
            yield f".txt is not UTF-8: {error}"
