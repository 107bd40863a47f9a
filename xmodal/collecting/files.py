"""The folder of a collection: posts, lists of what was deleted, and the cursor, all durable at the same points.

    <source>-<first received>-<number>.jsonl.zst           whole files of posts, which never change
    deleted/<the same name>                                what the service said was deleted in that time
    .<name>.part, deleted/.<name>.part                     the file that grows; no reader of posts takes it for one
    state.json                                             the cursor

A flush writes posts, then deletions, then the cursor, each fsynced: the cursor never runs ahead of what is written.
After a crash, the whole frames of a growing file are kept and made a file of their own; what was not flushed comes
again from the cursor, and what comes twice is dropped by its id.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from shards.checks import require_range
from shards.errors import UserError
from xmodal.collecting.arrivals import Cursor
from xmodal.collecting.frames import FrameFile, cut_to_whole_frames, read_lines
from xmodal.collecting.recent import RecentIds
from xmodal.posts.post import Post, post_record

_STATE = "state.json"
_ENDING = ".jsonl.zst"
_MAX_WAITING_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """When a file of posts is done, and how much a crash may cost."""

    posts_per_file: int = 100_000
    """Posts after which a new file begins."""
    megabytes_per_file: float = 256.0
    """Compressed size after which a new file begins."""
    minutes_per_file: float = 60.0
    """Age after which a new file begins."""
    flush_seconds: float = 5.0
    """Longest time that posts lie in memory. Where the service cannot go back, a crash loses so much."""
    recent_ids: int = 200_000
    """Ids held, of the posts written last, to drop what comes twice. It must cover what the service sends again."""

    def __post_init__(self) -> None:
        require_range(self, "posts_per_file", "recent_ids", least=1)
        require_range(self, "megabytes_per_file", "minutes_per_file", "flush_seconds", above=0)


class PostFiles:
    """The files of one collection. Use `open_files`."""

    def __init__(self, folder: Path, source: str, config: FilesConfig, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._source, self._config, self._clock = folder, source, config, clock
        self._deleted_folder = folder / "deleted"
        self._deleted_folder.mkdir(parents=True, exist_ok=True)
        state = _read_state(folder / _STATE, source)
        self.cursor: Cursor = state["cursor"]
        """Where to go on; `flush` makes it durable."""
        self._durable_cursor = self.cursor
        self._num_files_begun: int = state["num_files_begun"]
        self.finished: list[str] = []
        """Names of the files that this run has finished, those of a crash before it included."""
        self.num_removed = 0
        """Posts taken out again because they were deleted while their file still grew."""
        self._posts: FrameFile | None = None
        self._deleted: FrameFile | None = None
        self._in_file: dict[str, set[str]] = {"id": set(), "author": set()}
        self._to_remove = _Deleted()
        self._begun_at = self._flushed_at = clock()
        for part in sorted(folder.glob(f".{source}-*{_ENDING}.part")):
            self._recover(part)
        for part in sorted(self._deleted_folder.glob(f".{source}-*{_ENDING}.part")):
            self._commit(part)
        self._recent = RecentIds(config.recent_ids, self._ids_written_before())

    def add_post(self, post: Post) -> bool:
        """Take a post. Returns False for one that was written before."""
        if post.id in self._recent:
            return False
        self._begin_file()
        assert self._posts is not None
        self._posts.add(_json_line(post_record(post)))
        self._recent.add(post.id)
        self._in_file["id"].add(post.id)
        if post.author is not None:
            self._in_file["author"].add(post.author)
        return True

    def add_deletion(self, *, post_id: str | None = None, author: str | None = None) -> None:
        """Note that a post, or an account with all of its posts, was deleted; a post of the growing file leaves it."""
        self._begin_file()
        assert self._deleted is not None
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")
        kind, name = ("id", post_id) if post_id is not None else ("author", author)
        self._deleted.add(_json_line({kind: name, "deleted_at": moment}))
        if name in self._in_file[kind]:
            self._to_remove.add(kind, name)

    def flush_when_due(self) -> None:
        """Flush if it is time to, and begin a new file if this one is done."""
        now = self._clock()
        if self._posts is None or self._deleted is None:
            self._flush_cursor_when_due(now)
            return
        waiting = self._posts.waiting_bytes + self._deleted.waiting_bytes
        if (
            self._posts.num_lines >= self._config.posts_per_file
            or self._posts.num_bytes >= self._config.megabytes_per_file * 1e6
            or now - self._begun_at >= self._config.minutes_per_file * 60
        ):
            self.finish_file()
        elif waiting >= _MAX_WAITING_BYTES or now - self._flushed_at >= self._config.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write all that was taken, and then the cursor."""
        for file in (self._posts, self._deleted):
            if file is not None:
                file.flush()
        if self.cursor != self._durable_cursor or self._posts is not None:
            self._write_state()
        self._flushed_at = self._clock()

    def finish_file(self) -> None:
        """Give the growing file its name, without the posts that were deleted meanwhile."""
        self.flush()
        if self._posts is None or self._deleted is None:
            return
        posts, deleted = self._posts, self._deleted
        self.close()
        self.num_removed += self._finish(posts.path, self._to_remove)
        self._commit(deleted.path)
        self._in_file, self._to_remove = {"id": set(), "author": set()}, _Deleted()

    def close(self) -> None:
        """Let go of the growing files; what was not flushed is dropped."""
        for file in (self._posts, self._deleted):
            if file is not None:
                file.close()
        self._posts = self._deleted = None

    def _begin_file(self) -> None:
        if self._posts is not None:
            return
        self._begun_at = self._flushed_at = self._clock()
        moment = f"{datetime.fromtimestamp(self._begun_at, UTC):%Y%m%dT%H%M%SZ}"
        while True:
            self._num_files_begun += 1
            name = f"{self._source}-{moment}-{self._num_files_begun:06d}{_ENDING}"
            if not (self._folder / name).exists():
                break
        self._deleted = FrameFile(self._deleted_folder / f".{name}.part")
        self._posts = FrameFile(self._folder / f".{name}.part")

    def _recover(self, part: Path) -> None:
        """Make what a crash left a file of its own."""
        cut_to_whole_frames(part)
        deleted_part = self._deleted_folder / part.name
        removed = _Deleted()
        if deleted_part.exists():
            cut_to_whole_frames(deleted_part)
            for record in map(json.loads, read_lines(deleted_part)):
                for kind in ("id", "author"):
                    removed.add(kind, record.get(kind))
        self._finish(part, removed)

    def _finish(self, part: Path, removed: "_Deleted") -> int:
        """Commit a file of posts, without those that were deleted. Returns how many it was without."""
        num_removed = 0
        if removed and not _final_path(part).exists():
            kept = part.with_suffix(".kept")
            kept.unlink(missing_ok=True)
            num_removed = _copy_without(part, kept, removed)
            os.replace(kept, part)
        self._commit(part)
        if _final_path(part).exists():
            self.finished.append(_final_path(part).name)
        return num_removed

    def _commit(self, part: Path) -> None:
        """Show a part under its final name, whole or not at all; an empty one is dropped."""
        if part.stat().st_size:
            # Where the name is there already, a crash came between the next two lines.
            with suppress(FileExistsError):
                os.link(part, _final_path(part))
        part.unlink()
        _sync_folder(part.parent)

    def _ids_written_before(self) -> Iterator[str]:
        """The ids of the newest files, as many as may be held, oldest first."""
        newest: list[list[str]] = []
        count = 0
        for path in sorted(self._folder.glob(f"{self._source}-*{_ENDING}"), reverse=True):
            if count >= self._config.recent_ids:
                break
            newest.append([json.loads(line)["id"] for line in read_lines(path)])
            count += len(newest[-1])
        for ids in reversed(newest):
            yield from ids

    def _flush_cursor_when_due(self, now: float) -> None:
        """Where every post of an hour is rejected, the place in the stream still moves on."""
        if self.cursor != self._durable_cursor and now - self._flushed_at >= self._config.flush_seconds:
            self.flush()

    def _write_state(self) -> None:
        state = {"source": self._source, "cursor": self.cursor, "num_files_begun": self._num_files_begun}
        temporary = self._folder / f".{_STATE}.part"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(state) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / _STATE)
        _sync_folder(self._folder)
        self._durable_cursor = self.cursor


@contextmanager
def open_files(folder: str, source: str, config: FilesConfig) -> Iterator[PostFiles]:
    """The files of a collection, finished at the end of the block; errors but UserErrors leave them as a crash does.

    Raises UserError where the folder cannot be written, belongs to another source, or another process collects into it.
    """
    with _explained(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / ".lock", "w", encoding="utf-8") as lock:
            _take_lock(lock, folder)
            files = PostFiles(Path(folder), source, config)
            try:
                try:
                    yield files
                except UserError:
                    files.finish_file()
                    raise
                files.finish_file()
            finally:
                files.close()


@contextmanager
def _explained(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or type(error).__name__}",
            "make room or give another --folder; run again, it goes on from the last flush",
        ) from error


def _take_lock(lock: IO[str], folder: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another process collects into it", "stop that one, or give another --folder"
        ) from error


def _read_state(path: Path, source: str) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        found, cursor, num_files_begun = state["source"], dict(state["cursor"]), int(state["num_files_begun"])
    except FileNotFoundError:
        return {"cursor": {}, "num_files_begun": 0}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the state of a collection", "move it away to begin at now") from error
    if found != source:
        raise UserError(f"{path.parent}: holds a collection from {found}", "give each source a --folder of its own")
    return {"cursor": cursor, "num_files_begun": num_files_begun}


class _Deleted:
    """What was deleted while a file grew."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {"id": set(), "author": set()}

    def add(self, kind: str, name: str | None) -> None:
        """A post by its `id`, or all posts of an `author`; None is nothing."""
        if name is not None:
            self._names[kind].add(name)

    def __bool__(self) -> bool:
        return any(self._names.values())

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Whether a post, as a record, is one of them."""
        return any(record.get(kind) in names for kind, names in self._names.items())


def _copy_without(source: Path, target: Path, removed: _Deleted) -> int:
    """Copy the posts but for those that were deleted. Returns how many were left out."""
    num_removed = 0
    file = FrameFile(target)
    try:
        for line in read_lines(source):
            if removed.holds(json.loads(line)):
                num_removed += 1
                continue
            file.add(line)
            if file.waiting_bytes >= _MAX_WAITING_BYTES:
                file.flush()
        file.flush()
    finally:
        file.close()
    return num_removed


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _final_path(part: Path) -> Path:
    return part.with_name(part.name.removeprefix(".").removesuffix(".part"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
