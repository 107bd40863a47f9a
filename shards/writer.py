"""Samples → one committed shard: a plain WebDataset tar whose bytes depend on its samples alone.

Beside the tar lies `<name>.failures.jsonl`, what of the unit gave no sample. It always belongs to the tar that won:
it is staged under the tar's sha256 before the tar becomes visible, and gets its final name after.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from shards.storage import TEMPORARY_PREFIX, Storage, told_to_user

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_KEY_PATTERN = re.compile(r"[A-Za-z0-9_%-]{1,230}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with what is known of it."""

    key: str
    """`<post id>-<media number>`; letters, digits, `_`, `-` and `%` only: WebDataset cuts a name at its first dot."""
    image: bytes
    """The encoded picture."""
    image_extension: str
    """One of IMAGE_EXTENSIONS; says how `image` is encoded."""
    fields: Mapping[str, Any]
    """What goes into `<key>.json`."""
    text: str | None = None
    """What goes into `<key>.txt`; None for no such member."""

    def __post_init__(self) -> None:
        assert _KEY_PATTERN.fullmatch(self.key), f"not a sample key: {self.key!r}"
        assert self.image_extension in IMAGE_EXTENSIONS, f"not an image extension: {self.image_extension!r}"


@dataclass(frozen=True, kw_only=True)
class CommittedShard:
    """What `write_shard` made visible."""

    name: str
    num_samples: int
    won: bool
    """False if another writer had committed this shard before; then that one stands and ours is gone."""


class _HashingFile(io.RawIOBase):
    """Passes writes on to a file and keeps their sha256, so that a shard is not read again to know it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return self._file.write(content)


def to_json_bytes(value: Any) -> bytes:
    """One line of JSON, UTF-8, keys in the given order. Not-a-number is refused: no other reader knows it."""
    # Half a surrogate pair, as posts that were cut off hold, has no UTF-8; it becomes a question mark.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def write_shard(
    storage: Storage,
    name: str,
    samples: Iterable[Sample],
    failures: Sequence[Mapping[str, Any]] | None = None,
) -> CommittedShard:
    """Write `samples`, in their order, as `<name>.tar` and commit it; `failures` are read after the last sample.

    The same samples give the same bytes: no clock, no user name, no counter goes into the tar. Raises UserError where
    the storage cannot be written to.
    """
    temporary = storage.new_temporary(f"{name}.tar")
    try:
        with told_to_user(temporary.parent), open(temporary, "wb", buffering=1 << 20) as file:
            hashing = _HashingFile(file)
            num_samples = _write_tar(hashing, samples)
        sha256 = hashing.sha256.hexdigest()
        staged = _staged_failures_name(name, sha256)
        _delete_companions_of_removed_tar(storage, name)
        storage.replace(staged, _to_json_lines(failures or ()))
        won = storage.commit(temporary, f"{name}.tar")
    finally:
        storage.discard(temporary)
    recover_failures(storage, name, sha256 if won else None)
    storage.delete(staged)
    return CommittedShard(name=name, num_samples=num_samples, won=won)


def _delete_companions_of_removed_tar(storage: Storage, name: str) -> None:
    """Drop the index and failures of a tar that somebody removed to have it made again.

    Before the commit, since after it they may be the new tar's, written by another run that found it there.
    """
    for companion in (f"{name}.parquet", f"{name}.failures.jsonl"):
        # In this order: they appear after their tar, so one seen before the tar is found missing is a removed tar's.
        if storage.exists(companion) and not storage.exists(f"{name}.tar"):
            storage.delete(companion)


def recover_failures(storage: Storage, name: str, sha256: str | None = None) -> None:
    """Give the staged failures of a committed shard their final name.

    A writer that died between the commit and this step leaves the staged file; any later run calls this again.
    `sha256` is that of the committed tar, if known; else it is computed.
    """
    final = f"{name}.failures.jsonl"
    if storage.exists(final):
        return
    sha256 = sha256 or hashlib.sha256(storage.read(f"{name}.tar")).hexdigest()
    staged = _staged_failures_name(name, sha256)
    try:
        lines = storage.read(staged)
    except FileNotFoundError:
        # None were staged, or another run, which recovers the same ones, was faster.
        return
    storage.replace(final, lines)
    storage.delete(staged)


def temporary_names(name: str) -> tuple[str, str]:
    """What a writer's temporary files of shard `name` stand for, as `Storage.discard_leftovers` takes it."""
    return f"{name}.tar", f"{name}.failures"


def _staged_failures_name(name: str, sha256: str) -> str:
    return f"{TEMPORARY_PREFIX}{name}.failures-{sha256}"


def _to_json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(to_json_bytes(record) + b"\n" for record in records)


def _write_tar(file: io.RawIOBase, samples: Iterable[Sample]) -> int:
    """Members as `tarfile` writes them, byte for byte; its own stream copies a megabyte for each of them."""
    num_samples = size = 0
    for sample in samples:
        size += _write_member(file, f"{sample.key}.{sample.image_extension}", sample.image)
        size += _write_member(file, f"{sample.key}.json", to_json_bytes(sample.fields))
        if sample.text is not None:
            size += _write_member(file, f"{sample.key}.txt", sample.text.encode(errors="replace"))
        num_samples += 1
    end = size + 2 * tarfile.BLOCKSIZE
    file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
    return num_samples


def _write_member(file: io.RawIOBase, name: str, content: bytes) -> int:
    """Returns how many bytes header, content and padding take."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = 0
    member.mode = 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    # A short name needs none of the extended headers, and is the same in both formats.
    short = len(name) <= tarfile.LENGTH_NAME and name.isascii() and len(content) < 8**11
    header = member.tobuf(tarfile.USTAR_FORMAT if short else tarfile.PAX_FORMAT)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    for part in (header, content, padding):
        file.write(part)
    return len(header) + len(content) + len(padding)
