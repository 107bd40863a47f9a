"""Samples → one committed shard: a plain WebDataset tar whose bytes depend on its samples alone.

Beside the tar lies `<name>.failures.jsonl`, what of the unit gave no sample. It always belongs to the tar that won:
it is staged under the tar's sha256 before the tar becomes visible, and gets its final name after.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from shards.index import IndexRows, index_metadata, index_name, write_index
from shards.storage import TEMPORARY_PREFIX, Storage, told_to_user
from shards.tar_samples import IMAGE_EXTENSIONS

_KEY_PATTERN = re.compile(r"[A-Za-z0-9_%-]{1,230}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with what is known of it."""

    key: str
    """`<post id>-<media number>`; letters, digits, `_`, `-` and `%` only: WebDataset cuts a name at its first dot."""
    image: bytes
    """The encoded picture."""
    image_extension: str
    """One of `tar_samples.IMAGE_EXTENSIONS`; says how `image` is encoded."""
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


class _Tar:
    """Writes members as `tarfile` does, byte for byte; its own stream copies a megabyte for each of them.

    The sha256 is kept while writing, so that a shard is not read again to know it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.keys: set[str] = set()

    def add(self, name: str, content: bytes) -> tuple[int, int]:
        """Write a member; returns offset and length of its content."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mtime = 0
        member.mode = 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        # A short name needs none of the extended headers, and is the same in both formats.
        short = len(name) <= tarfile.LENGTH_NAME and name.isascii() and len(content) < 8**11
        self._write(member.tobuf(tarfile.USTAR_FORMAT if short else tarfile.PAX_FORMAT))
        offset = self.size
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset, len(content)

    def end(self) -> None:
        """Write the end mark, and fill up the last record."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self.sha256.update(content)
        self._file.write(content)
        self.size += len(content)


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
            tar = _Tar(file)
            rows = IndexRows()
            for sample in samples:
                _write_sample(tar, sample, rows)
            tar.end()
        index = rows.table(tar_bytes=tar.size, tar_sha256=tar.sha256.hexdigest())
        won = _commit(storage, name, temporary, index, _to_json_lines(failures or ()))
    finally:
        storage.discard(temporary)
    return CommittedShard(name=name, num_samples=len(tar.keys), won=won)


def write_tar(storage: Storage, name: str, tar: bytes, index: pa.Table, failures: bytes) -> bool:
    """Commit the bytes of a whole tar as `<name>.tar`, with its index and the lines of its failures file.

    Returns False if another writer had committed this shard before; then that one stands.
    """
    temporary = storage.new_temporary(f"{name}.tar")
    try:
        with told_to_user(temporary.parent):
            temporary.write_bytes(tar)
        return _commit(storage, name, temporary, index, failures)
    finally:
        storage.discard(temporary)


def _commit(storage: Storage, name: str, temporary: Path, index: pa.Table, failures: bytes) -> bool:
    """Make a tar that was written to `temporary` visible, then its index and failures."""
    sha256 = index_metadata(index)["tar_sha256"]
    staged = _staged_failures_name(name, sha256)
    _delete_companions_of_removed_tar(storage, name)
    storage.replace(staged, failures)
    won = storage.commit(temporary, f"{name}.tar")
    if won:
        # Not needed: `read_index` would make the same one. But it would read the whole tar for it.
        write_index(storage, f"{name}.tar", index)
    recover_failures(storage, name, sha256 if won else None)
    storage.delete(staged)
    return won


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


def temporary_names(name: str) -> tuple[str, ...]:
    """What a writer's temporary files of shard `name` stand for, as `Storage.discard_leftovers` takes it."""
    tar = f"{name}.tar"
    return tar, index_name(tar), f"{name}.failures", f"{name}.failures.jsonl"


def _staged_failures_name(name: str, sha256: str) -> str:
    return f"{TEMPORARY_PREFIX}{name}.failures-{sha256}"


def _to_json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(to_json_bytes(record) + b"\n" for record in records)


def _write_sample(tar: _Tar, sample: Sample, rows: IndexRows) -> None:
    assert sample.key not in tar.keys, f"two samples of one key would be read as one: {sample.key}"
    tar.keys.add(sample.key)
    contents = {sample.image_extension: sample.image, "json": to_json_bytes(sample.fields)}
    if sample.text is not None:
        contents["txt"] = sample.text.encode(errors="replace")
    members = {extension: tar.add(f"{sample.key}.{extension}", content) for extension, content in contents.items()}
    rows.add(sample.key, members, contents)
