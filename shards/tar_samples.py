"""The samples of a tar that anybody may have made: as WebDataset groups its members, and what is broken in them."""

import io
import json
import tarfile
from collections.abc import Container, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

Buffer = bytes | memoryview
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Of a sample's members the first with one of these is its picture."""
DAMAGED_TAR = (tarfile.TarError, EOFError)
"""What reading a tar that is not whole raises."""


class Member(NamedTuple):
    """A file of a sample: its whole name, its extension, and where its bytes lie in the tar."""

    name: str
    extension: str
    offset: int
    length: int


def open_tar(tar: bytes) -> tarfile.TarFile:
    """The bytes of a tar, to go through its members; what of a name is not UTF-8 becomes U+FFFD. Raises TarError."""
    return tarfile.open(fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="replace")


def tar_members(tar: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of every file in the bytes of a tar. Raises one of `DAMAGED_TAR` if it is not whole."""
    try:
        with open_tar(tar) as archive:
            for member in archive:
                # Of a member that ends where it begins, or before, tarfile would read the same header for ever.
                if member.size < 0 or archive.offset <= member.offset:
                    raise EOFError(f"{member.name} claims {member.size} bytes, and ends before it begins")
                if member.offset_data + member.size > len(tar):
                    raise EOFError(f"{member.name} claims {member.size} bytes, and the tar ends before")
                if member.isfile():
                    yield member.name, member.offset_data, member.size
            # tarfile stops without a word at a damaged header and where a file ends between two members.
            if tar[archive.offset : archive.offset + tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
                raise EOFError(f"no member and no end mark at byte {archive.offset}")
    except (ValueError, OverflowError, RecursionError) as error:  # tarfile's own, at some headers that make no sense
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error


def key_and_extension(name: str) -> tuple[str, str]:
    """What WebDataset takes a member's name for: `a/b.seg.png` is the extension `seg.png` of the sample `a/b`.

    A name without an extension, or with nothing before it, is of no sample: it is its own key, without an extension.
    """
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return (str(path.with_name(stem)), extension.lower()) if stem and extension else (name, "")


def tar_samples(tar: bytes) -> Iterator[tuple[str, list[Member]]]:
    """Group a tar's members as WebDataset does: neighbours that agree up to the first dot of their last name.

    Yields each sample's key and members. Raises one of `DAMAGED_TAR` if the tar is not whole, after all that comes
    before the damage.
    """
    damage: Exception | None = None
    last_key = ""
    members: list[Member] = []
    try:
        for name, offset, length in tar_members(tar):
            key, extension = key_and_extension(name)
            if not extension:
                continue
            if members and key != last_key:
                yield last_key, members
                members = []
            last_key = key
            members.append(Member(name, extension, offset, length))
    except DAMAGED_TAR as error:
        damage = error
    if members:
        yield last_key, members
    if damage:
        raise damage


def problems_of_sample(tar: Buffer, key: str, members: Sequence[Member], seen: Container[str]) -> Iterator[str]:
    """What is broken in a sample, but for its picture, which is not decoded. `seen` are the keys that came before."""
    if key in seen:
        yield "stands in several places of the tar, which readers take for several samples"
    extensions: set[str] = set()
    for member in members:
        if member.extension in extensions:
            yield f"has two members .{member.extension}"
        extensions.add(member.extension)
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            yield f"its member {member.name!r} would be unpacked outside of the folder it is unpacked in"
        if member.extension == "json":
            yield from _problems_of_json(tar[member.offset : member.offset + member.length])
    if not extensions & set(IMAGE_EXTENSIONS):
        yield f"has no picture, only {', '.join('.' + one for one in sorted(extensions))}"


def _problems_of_json(content: Buffer) -> Iterator[str]:
    try:
        if not isinstance(json.loads(bytes(content)), dict):
            yield ".json holds no object"
    except (ValueError, RecursionError) as error:
        yield f".json is not JSON: {error}"
