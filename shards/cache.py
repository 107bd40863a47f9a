"""A folder on this machine that keeps copies of shards from afar, shared by all processes that are given it.

Files and `flock` alone decide everything, so that nothing is left locked by a process that was killed:

- `<sha256>.tar` is a whole shard; whoever reads it holds a shared lock, and only unlocked ones are evicted.
- `<sha256>.part` is one that its exclusive lock's holder is fetching; unlocked, it is what a killed one left.
- `.lock` is held while room is made, or a name is changed. All files count, those being fetched at their full size.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.storage import CorruptObjectError, Storage, pread, told_to_user

MAX_CORRUPT_FETCHES = 3
"""Times that a shard whose bytes are not the expected ones is fetched again, before it is an error."""
MIN_FREE_BYTES = 1 << 30
"""Of the disk, that the cache leaves to others."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class NoRoomError(Exception):
    """A shard does not fit beside those that are in use."""


class BusyError(Exception):
    """Another process is fetching this shard."""


@dataclass(frozen=True)
class RemoteShard:
    """A shard that may be cached: where it lies, and what is known of its bytes."""

    storage: Storage
    name: str
    bytes: int
    sha256: str

    @property
    def url(self) -> str:
        """For messages."""
        return f"{self.storage.url}/{self.name}"


class Lease:
    """A cached shard in use: it stays until this is closed, or the process ends."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name

    def read_range(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`. Raises ShortObjectError if the shard ends before."""
        return pread(self._descriptor, offset, length, self._name)

    def is_of(self, path: Path) -> bool:
        """Whether it is for the file that is at `path` now."""
        return _is_still(self._descriptor, path)

    def close(self) -> None:
        """Let the shard be evicted. A second call does nothing."""
        if self._descriptor >= 0:
            with suppress(OSError):  # then it is merely evicted sooner
                os.utime(self._descriptor)
            _unlock_and_close(self._descriptor)
            self._descriptor = -1

    def abandon(self) -> None:
        """In a process that was forked: leave the lease to the parent, and close what is open here of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ShardCache:
    """At most `max_bytes` of shards in `folder`; the least recently used go first.

    Raises UserError where the folder cannot be made, is another user's, or cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        with told_to_user(folder):
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except FileExistsError as error:
                raise UserError(f"{folder}: is no folder", "give another one for the cache") from error
            # A folder of the system's temporary one has a name that anybody can guess, and take first, for a link too.
            if {self.folder.stat().st_uid, self.folder.lstat().st_uid} != {os.getuid()}:
                raise UserError(f"{folder}: belongs to another user", "give another folder for the cache")
            try:
                with self._locked():
                    pass
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                what = f"{folder}: its file system has no locks"
                raise UserError(what, "give a folder on a local disk for the cache") from error

    def lease(self, shard: RemoteShard) -> Lease | None:
        """A shard that is in the cache, kept there until the lease is closed; None for one that is not."""
        try:
            descriptor = os.open(self._path(shard, "tar"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if _lock(descriptor, fcntl.LOCK_SH) and os.fstat(descriptor).st_nlink:
            with suppress(OSError):
                os.utime(descriptor)
            return Lease(descriptor, shard.url)
        _unlock_and_close(descriptor)  # it is being evicted
        return None

    def fetch(self, shard: RemoteShard) -> Lease:
        """Bring a shard into the cache, unless it is there already, and keep it there until the lease is closed.

        Raises NoRoomError; BusyError; CorruptObjectError where the shard's bytes are not those that are expected;
        and whatever reading from its storage raises.
        """
        lease = self.lease(shard)
        if lease:
            return lease
        part = self._path(shard, "part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not (_lock(descriptor, fcntl.LOCK_EX) and _is_still(descriptor, part)):
                raise BusyError
            try:
                lease = self._lease_or_make_room(shard, descriptor)
                if lease:
                    part.unlink()
                    _unlock_and_close(descriptor)
                    return lease
                _download(shard, descriptor)
                os.fsync(descriptor)  # else a machine that crashes could leave a file of the right name and wrong bytes
                # Who lists the folder meanwhile might see neither name, or both; and between its two locks, the file
                # is free to be evicted.
                with self._locked():
                    os.rename(part, self._path(shard, "tar"))
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except BaseException:
            _unlock_and_close(descriptor)
            raise
        return Lease(descriptor, shard.url)

    def drop(self, shard: RemoteShard, lease: Lease) -> None:
        """End a lease on a file whose bytes are no longer the shard's, and remove it, so that it is fetched anew."""
        path = self._path(shard, "tar")
        with self._locked():
            if lease.is_of(path):  # another process may have dropped it, and fetched it anew
                path.unlink()
        lease.close()

    def num_bytes(self) -> int:
        """What all files in the cache take, those being fetched at their full size."""
        with self._locked():
            return sum(entry.stat.st_size for entry in self._entries())

    def _path(self, shard: RemoteShard, suffix: str) -> Path:
        # The name comes from a view, which anybody may have written.
        if not _SHA256.fullmatch(shard.sha256):
            raise UserError(f"{shard.url}: {shard.sha256!r} is no sha256", "curate the view again")
        return self.folder / f"{shard.sha256}.{suffix}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock_and_close(descriptor)

    def _lease_or_make_room(self, shard: RemoteShard, part: int) -> Lease | None:
        """The lease of a shard that another process has just brought; else evict until it fits, and take its room.

        Raises NoRoomError, nothing being evicted then.
        """
        size = shard.bytes
        with self._locked(), ExitStack() as evicted:
            # What may have hidden it a moment ago, somebody who looked what to evict, is not here now.
            lease = self.lease(shard)
            if lease:
                return lease
            os.ftruncate(part, 0)  # what a killed process had fetched of it
            entries = self._entries()
            missing = max(
                sum(entry.stat.st_size for entry in entries) + size - self.max_bytes,
                size + MIN_FREE_BYTES - shutil.disk_usage(self.folder).free,
            )
            unused = []
            # What killed processes left goes first, then the least recently used.
            for entry in sorted(entries, key=lambda entry: (entry.path.suffix == ".tar", entry.stat.st_mtime_ns)):
                if missing <= 0:
                    break
                if entry.stat.st_size and evicted.enter_context(_locked_unless_used(entry.path)):
                    unused.append(entry.path)
                    missing -= entry.stat.st_size
            if missing > 0:
                raise NoRoomError
            for path in unused:
                path.unlink()
            _allocate(part, size)
            return None

    def _entries(self) -> list["_Entry"]:
        entries = []
        for path in self.folder.iterdir():
            # The folder may hold files of others, which are neither counted nor touched.
            if _SHA256.fullmatch(path.stem) and path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):
                    entries.append(_Entry(path, path.stat()))
        return entries


@dataclass(frozen=True)
class _Entry:
    path: Path
    stat: os.stat_result


def default_cache_folder() -> str:
    """One a user in the system's temporary folder: `TMPDIR` names what is local to a node, on most clusters."""
    return os.path.join(tempfile.gettempdir(), f"xmodal-shards-{os.getuid()}")


def _allocate(descriptor: int, size: int) -> None:
    """Take the room on the disk at once: what others are still fetching must be seen as taken."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoRoomError from error
        os.ftruncate(descriptor, size)  # a file system that cannot


def _unlock_and_close(descriptor: int) -> None:
    # Unlocked by word, not only by being closed: a process that was forked meanwhile has it open too.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`: not renamed or removed since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked_unless_used(path: Path) -> Iterator[bool]:
    """Keep others from using a file that nobody uses; False if somebody does, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX) and _is_still(descriptor, path)
    finally:
        _unlock_and_close(descriptor)


def _download(shard: RemoteShard, descriptor: int) -> None:
    for attempt in range(MAX_CORRUPT_FETCHES):
        try:
            _download_once(shard, descriptor)
            return
        except CorruptObjectError:
            if attempt == MAX_CORRUPT_FETCHES - 1:
                raise


def _download_once(shard: RemoteShard, descriptor: int) -> None:
    sha256 = hashlib.sha256()
    offset = 0
    for chunk in shard.storage.chunks(shard.name):
        if offset + len(chunk) > shard.bytes:  # room was made for so many bytes, not for more
            raise CorruptObjectError(f"{shard.url}: has more than the {shard.bytes} bytes that it was indexed with")
        sha256.update(chunk)
        rest = memoryview(chunk)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]
    if sha256.hexdigest() != shard.sha256:
        raise CorruptObjectError(f"{shard.url}: its sha256 is not the one that it was indexed with")
