"""Reading every member of a shard once, and saying what is broken: for shards made here, and for any WebDataset."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from shards.decode import UndecodableImageError, decode_rgb
from shards.index import INDEX_VERSION, index_metadata, index_name, stored_index
from shards.storage import Storage
from shards.tar_samples import DAMAGED_TAR, IMAGE_EXTENSIONS, problems_of_sample, tar_samples


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
    with_picture, told = _check_tar(tar)
    problems = [Problem(shard=name, key=key, what=what) for key, what in told]
    if sha256 not in (None, actual):
        problems.insert(0, Problem(shard=name, key=None, what=f"its sha256 is {actual}, and should be {sha256}"))
    index = stored_index(storage, name)
    remedy = f"run `xmodal shards index {storage.url}`"
    if index is not None and index_metadata(index).get("tar_sha256") != actual:
        what = f"{index_name(name)} is the index of another tar: {remedy}"
        problems.append(Problem(shard=name, key=None, what=what))
    elif index is not None and index_metadata(index).get("index_version") != INDEX_VERSION:
        what = f"{index_name(name)} is of another version: {remedy}"
        problems.append(Problem(shard=name, key=None, what=what))
    broken = {problem.key for problem in problems if problem.key is not None}
    return ShardReport(name=name, bytes=len(tar), samples=len(with_picture - broken), problems=problems)


def _check_tar(tar: bytes) -> tuple[set[str], list[tuple[str | None, str]]]:
    """The keys that have a picture; and key (None for the whole) and what is wrong, in the order of the samples."""
    with_picture: set[str] = set()
    problems: list[tuple[str | None, str]] = []
    seen: set[str] = set()
    try:
        for key, members in tar_samples(tar):
            problems += [(key, what) for what in problems_of_sample(tar, key, members, seen)]
            seen.add(key)
            for member in members:
                content = tar[member.offset : member.offset + member.length]
                problems += [(key, what) for what in _problems_of_content(member.extension, content)]
                if member.extension in IMAGE_EXTENSIONS:
                    with_picture.add(key)
    except DAMAGED_TAR as error:
        problems.append((None, f"not a whole tar file: {error}"))
    return with_picture, problems


def _problems_of_content(extension: str, content: bytes) -> Iterator[str]:
    if extension in IMAGE_EXTENSIONS:
        try:
            decode_rgb(content)
        except UndecodableImageError as error:
            yield f".{extension} cannot be decoded: {error}"
    elif extension == "txt":
        try:
            content.decode()
        except UnicodeDecodeError as error:
            yield f".txt is not UTF-8: {error}"
