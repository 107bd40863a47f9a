"""Where shards, indexes and views lie: one small interface, so that no other module opens a path by itself.

Local folders are implemented here, `s3://` in `s3_storage`.
"""

import errno
import io
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.errors import UserError

TEMPORARY_PREFIX = ".tmp-"
_CHUNK = 1 << 20
LEFTOVER_AGE_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that died: another run may be writing the younger ones."""


# No such file (ENOENT) is how a folder that somebody removed, or one of /proc, refuses a new file.
_CANNOT_WRITE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.ENOENT,
        errno.ENAMETOOLONG,
    }
)  # fmt: skip


def pread(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """Read `length` bytes from `offset` of an open file; `name` names it in errors.

    Raises ShortObjectError if the file ends before, without memory having been taken for what is not there.
    """
    if offset + length > os.fstat(descriptor).st_size:
        raise ShortObjectError(f"{name}: ends before byte {offset + length}")
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise ShortObjectError(f"{name}: ends before byte {offset + length}")
        content += more
    return content


@contextmanager
def told_to_user(
    folder: str | os.PathLike[str],
    remedy: str = "see to its permissions and its free space, or give another folder",
    *,
    every: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn what keeps this user from writing to `folder` (rights, a full disk) into a UserError.

    Of the classes `every` all errors are taken for that: libraries have words of their own for what the system says.
    """
    expected: tuple[type[Exception], ...] = (OSError, *every)
    try:
        yield
    except expected as error:
        if not isinstance(error, every) and getattr(error, "errno", None) not in _CANNOT_WRITE:
            raise
        raise UserError(
            f"{folder}: cannot be written to: {getattr(error, 'strerror', None) or error}", remedy
        ) from error


class ShortObjectError(OSError):
    """An object that ends before the bytes that were asked for."""


class CorruptObjectError(OSError):
    """An object whose bytes are not those that were written."""


def begin_writing_out(file: BinaryIO, start: int, end: int) -> None:
    """Have what was written to a file between two offsets go to its disk from now on, without waiting for that.

    A later `fsync` then finds less to do. Where the system cannot be told (it is Linux that takes this advice so),
    nothing happens.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def give_default_permissions(path: Path) -> None:
    """Have those read a file who may read what else this process writes: safetensors makes its own for the owner."""
    umask = os.umask(0)  # there is no other way to ask for it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def name_of_leftover(name: str) -> str:
    """What a temporary file was to become; of one that was to become a temporary file, what that was to."""
    while name.startswith(TEMPORARY_PREFIX):
        name = name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0]
    return name


class Storage(Protocol):
    """A flat folder of objects with names without slashes."""

    url: str
    is_local: bool
    """Whether reading costs no request over a network, so that a copy nearer by is of no use."""

    def below(self, name: str, *, create: bool = False) -> "Storage":
        """The folder `name` in this one, whose objects are not among its own.

        One that is not there has no objects, or raises FileNotFoundError when asked for them, unless it is to be made.
        """

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises FileNotFoundError if there is none, CorruptObjectError if it is damaged."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read a whole object piece by piece, however large it is. Raises what `read` does, perhaps at the end only."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`. Raises FileNotFoundError, ShortObjectError if the object ends before."""

    def size(self, name: str) -> int:
        """Size of an object in bytes. Raises FileNotFoundError if there is none."""

    def exists(self, name: str) -> bool:
        """Whether an object of this name is visible."""

    def names(self, suffix: str = "") -> list[str]:
        """Visible objects whose names end with `suffix`, sorted."""

    def names_below(self) -> Iterator[str]:
        """Visible objects of this folder and of those below it, as `below/name`, one after the other.

        Their order is the same each time. Of a local folder memory holds all names in it, and in those above it, at a
        time; of s3 a thousand. A folder below that cannot be listed is named itself, as `below/`.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Put a small object under `name`, in one step, whether or not there was one."""

    def put_file(self, name: str, path: Path) -> None:
        """Copy a local file of any size to `name`, in one step, whether or not there was one.

        Raises FileNotFoundError if there is no such file.
        """

    def delete(self, name: str) -> None:
        """Remove an object; none there is no error."""

    def new_temporary(self, name: str) -> Path:
        """A local path to write to, to be given to `commit` or `discard`."""

    def commit(self, temporary: Path, name: str) -> bool:
        """Make a finished temporary file visible as `name`, durably and only once.

        Returns False, and drops the file, if another writer was first.
        """

    def discard(self, temporary: Path) -> None:
        """Drop a temporary file."""

    def discard_leftovers(self, min_age_seconds: float, committed: Collection[str] = ()) -> int:
        """Drop temporary files that nobody wrote to for so long: those of writers that died. Returns how many.

        Those for a name in `committed` go whatever their age: should their writer live, it has lost.
        """


class LocalStorage:
    """A folder on a local or shared POSIX file system with hard links."""

    is_local = True

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = False) -> None:
        self.folder = Path(folder)
        self.url = str(folder)
        if create:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                writable = os.access(self.folder, os.W_OK | os.X_OK)
            except OSError as error:
                raise UserError(f"{folder}: cannot be a folder: {error.strerror}", "give another path") from error
            if not writable:
                raise UserError(f"{folder}: may not be written to", "see to its permissions, or give another path")

    def below(self, name: str, *, create: bool = False) -> "LocalStorage":
        """The folder `name` in this one, made if it is to be."""
        return LocalStorage(self.folder / name, create=create)

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises FileNotFoundError if there is none."""
        return (self.folder / name).read_bytes()

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read a whole object piece by piece. Raises FileNotFoundError if there is none."""
        with open(self.folder / name, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`. Raises FileNotFoundError, ShortObjectError if the object ends before."""
        with open(self.folder / name, "rb", buffering=0) as file:
            return pread(file.fileno(), offset, length, str(self.folder / name))

    def size(self, name: str) -> int:
        """Size of an object in bytes. Raises FileNotFoundError if there is none."""
        return (self.folder / name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether an object of this name is visible."""
        return (self.folder / name).is_file()

    def names(self, suffix: str = "") -> list[str]:
        """Visible objects whose names end with `suffix`, sorted."""
        return sorted(self._listing(suffix))

    def _listing(self, suffix: str) -> Iterator[str]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith(".") and entry.is_file():
                    yield entry.name

    def names_below(self) -> Iterator[str]:
        """Visible objects of this folder and of those below it, as `below/name`, one after the other.

        Their order is the same each time. Links to folders are not followed: they could lead in a circle. A folder
        below that cannot be listed is named itself, as `below/`.
        """
        return self._names_below("")

    def _names_below(self, above: str) -> Iterator[str]:
        """Those below the folder `above` (with a slash at its end, or empty for this one)."""
        try:
            with os.scandir(self.folder / above) as entries:
                listed = (_listed_name(entry) for entry in entries if not entry.name.startswith("."))
                # Names alone: with what each is of, they would take twice the memory.
                names = sorted(filter(None, listed), key=lambda name: name.removesuffix("/"))
        except OSError:
            if not above:
                raise
            yield above
            return
        for name in names:
            if name.endswith("/"):
                yield from self._names_below(above + name)
            else:
                yield above + name

    def replace(self, name: str, content: bytes) -> None:
        """Put a small object under `name`, in one step, whether or not there was one."""
        self._put(name, io.BytesIO(content))

    def put_file(self, name: str, path: Path) -> None:
        """Copy a local file of any size to `name`, in one step, whether or not there was one.

        Raises FileNotFoundError if there is no such file.
        """
        with open(path, "rb") as content:
            self._put(name, content)

    def _put(self, name: str, content: BinaryIO) -> None:
        with told_to_user(self.folder):
            try:
                self._replace(name, content)
            except FileNotFoundError:
                # Swept away, as a leftover of a name that another writer had committed by then.
                content.seek(0)
                self._replace(name, content)
            self._sync_folder()

    def _replace(self, name: str, content: BinaryIO) -> None:
        temporary = self.new_temporary(name)
        try:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            self.discard(temporary)
            raise

    def delete(self, name: str) -> None:
        """Remove an object; none there is no error."""
        (self.folder / name).unlink(missing_ok=True)

    def new_temporary(self, name: str) -> Path:
        """A local path to write to, to be given to `commit` or `discard`."""
        # In the same folder, because a hard link cannot cross file systems; with a leading dot, because then no
        # glob of a reader ("*.tar") matches it.
        return self.folder / f"{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}"

    def commit(self, temporary: Path, name: str) -> bool:
        """Make a finished temporary file visible as `name`, durably and only once.

        Returns False, and drops the file, if another writer was first.
        """
        try:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # link() fails if the name exists, where rename() would replace it: whoever commits first wins, and a
            # late duplicate of the same unit can never overwrite a shard that a reader may have open.
            os.link(temporary, self.folder / name)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Swept away, as a leftover of a name that another writer had committed by then.
            if self.exists(name):
                return False
            raise
        finally:
            self.discard(temporary)
        self._sync_folder()
        return True

    def discard(self, temporary: Path) -> None:
        """Drop a temporary file."""
        temporary.unlink(missing_ok=True)

    def discard_leftovers(self, min_age_seconds: float, committed: Collection[str] = ()) -> int:
        """Drop temporary files that nobody wrote to for so long: those of writers that died. Returns how many.

        Those for a name in `committed` go whatever their age: should their writer live, it has lost.
        """
        num_dropped = 0
        for leftover in self.folder.glob(TEMPORARY_PREFIX + "*"):
            try:
                if (
                    name_of_leftover(leftover.name) in committed
                    or time.time() - leftover.stat().st_mtime >= min_age_seconds
                ):
                    leftover.unlink()
                    num_dropped += 1
            except FileNotFoundError:  # its writer was faster
                continue
        return num_dropped

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _listed_name(entry: os.DirEntry[str]) -> str:
    """A folder's name with a slash at its end, a file's, or nothing for what is neither."""
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    try:
        return entry.name if entry.is_file() else ""
    except OSError:  # a link that cannot be followed: whoever reads it is told why
        return entry.name


def check_can_be_made(url: str) -> None:
    """Raise UserError where `open_storage(url, create=True)` would, as far as can be told without making a folder."""
    if "://" in url and not url.startswith("file://"):
        return
    folder = Path(url.removeprefix("file://")).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{url}: cannot be a folder: {folder} is a file", "give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{url}: {folder} may not be written to", "see to its permissions, or give another path")


def open_storage(url: str | os.PathLike[str], *, create: bool = False) -> Storage:
    """The storage behind a local path or an `s3://` URL.

    Raises UserError for another scheme and, unless it is to be made, for a folder or prefix where nothing lies.
    """
    text = os.fspath(url)
    scheme, separator, _ = text.partition("://")
    if separator and scheme == "s3":
        # boto3 takes a third of a second to import, and local runs need none of it.
        from shards.s3_storage import S3Storage

        objects = S3Storage(text)
        if not create:
            objects.check()
        return objects
    if separator and scheme != "file":
        raise UserError(
            f"{text}: storage scheme {scheme!r} is not supported", "give a local or shared folder, or an s3:// URL"
        )
    folder = text.removeprefix("file://")
    if not create and not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder", "check the path, or run the stage that makes it first")
    return LocalStorage(folder, create=create)


def open_folder_of(file: str | os.PathLike[str]) -> tuple[Storage, str]:
    """The storage in which a file, on a disk or on `s3://`, is to lie, made if it is not there; and the file's name.

    Raises UserError for what names no file, and for another scheme.
    """
    folder, slash, name = os.fspath(file).removeprefix("file://").rpartition("/")
    if not name or folder.endswith(":/"):  # such as s3://BUCKET
        raise UserError(f"{os.fspath(file)}: names no file", "give the path of a file, or s3://BUCKET/NAME")
    return open_storage(folder or slash or ".", create=True), name
