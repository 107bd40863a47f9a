"""Copies of a run's complete checkpoints on another storage, such as S3, made while training goes on."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.storage import CorruptObjectError, LocalStorage, Storage
from xmodal.training import metrics_file
from xmodal.training.checkpoint import COMMIT_FILE, committed_steps

log = logging.getLogger(__name__)

_LIST = "checkpoints.json"
"""Names all folders of which something may lie there: storages list objects, not folders."""
_ALSO = ("config.json", metrics_file.NAME)


class Upload:
    """Keeps on a storage what a run's folder has of complete checkpoints, in a thread: no step waits for it.

    There as here `commit.json` comes last and goes first, and `latest` and `best` name complete ones. What fails is
    logged, and done with the next checkpoint.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        """Raises UserError where the storage may not be read or written."""
        self._folder, self._storage = folder, storage
        self._known = _read_list(storage)
        self._write_list()
        self._complete: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._last: Future[None] | None = None

    def start(self) -> None:
        """Copy what has not been: a new checkpoint, once the one before is done, and what failed."""
        if self._last is None or self._last.running() or self._last.done():
            self._last = self._thread.submit(self._try_to_copy)

    def is_done(self, seconds: float) -> bool:
        """Wait for so long; whether all is copied, or was tried."""
        return self._last is None or bool(wait([self._last], seconds).done)

    def _try_to_copy(self) -> None:
        try:
            self._copy_all()
        except (OSError, UserError) as error:
            log.error("checkpoints are not uploaded to %s as yet: %s", self._storage.url, error)

    def _copy_all(self) -> None:
        checkpoints = self._folder / "checkpoints"
        for name in _ALSO:
            with suppress(FileNotFoundError):
                self._storage.put_file(name, self._folder / name)
        # The newest first: it is what is lost with this machine.
        for name in reversed(committed_steps(checkpoints)):
            if name not in self._complete:
                try:
                    self._copy(checkpoints / name)
                except FileNotFoundError:
                    log.warning("%s was dropped before it was uploaded; if often, raise keep_checkpoints", name)
        here = set(committed_steps(checkpoints))
        if not self._complete & here:
            return
        self._storage.replace("latest", max(self._complete & here).encode())
        best = checkpoints / "best"
        if best.exists() and (name := best.read_text()) in self._complete:
            self._storage.replace("best", name.encode())
        for name in sorted(self._known - here):
            self._drop(name)

    def _copy(self, source: Path) -> None:
        self._known.add(source.name)
        self._write_list()
        target = self._storage.below(source.name, create=True)
        if not _is_same(target, source / COMMIT_FILE):  # it is, of a run that goes on
            target.delete(COMMIT_FILE)
            names = sorted(path.name for path in source.iterdir() if path.name != COMMIT_FILE)
            for name in [*names, COMMIT_FILE]:
                target.put_file(name, source / name)
        self._complete.add(source.name)

    def _drop(self, name: str) -> None:
        folder = self._storage.below(name)
        folder.delete(COMMIT_FILE)
        with suppress(FileNotFoundError):
            for rest in folder.names():
                folder.delete(rest)
        self._complete.discard(name)
        self._known.discard(name)
        self._write_list()

    def _write_list(self) -> None:
        self._storage.replace(_LIST, json.dumps(sorted(self._known)).encode() + b"\n")


def wait_for_upload(upload: Upload | None, device: torch.device, progress: Callable[[], None]) -> None:
    """All ranks wait for the one that has an `upload`: launchers end those that are left soon after one has ended.

    `progress` is called about every second.
    """
    is_done = False
    while not is_done:
        progress()
        votes = torch.tensor([int(upload is None or upload.is_done(1.0))], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        is_done = bool(votes.item())


def fetch_newest(storage: Storage, folder: Path) -> None:
    """Bring the newest checkpoint that was uploaded into a run's `folder`, unless that has one as new.

    Raises UserError where the storage may not be read, or the copy is damaged.
    """
    try:
        newest = storage.read("latest").decode()
    except FileNotFoundError:
        return
    checkpoints = folder / "checkpoints"
    if newest <= max(committed_steps(checkpoints), default=""):
        return
    log.info("%s is fetched from %s", newest, storage.url)
    source, target = storage.below(newest), checkpoints / newest
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        for name in source.names():
            if name != COMMIT_FILE:
                with open(target / name, "wb") as file:
                    file.writelines(source.chunks(name))
                    file.flush()
                    os.fsync(file.fileno())
        for name in _ALSO:
            LocalStorage(folder).replace(name, storage.read(name))
        LocalStorage(target).replace(COMMIT_FILE, source.read(COMMIT_FILE))
    except CorruptObjectError as error:
        raise UserError(
            f"{source.url}: the copy of the newest checkpoint is damaged: {error}",
            f"put the name of another complete one into {storage.url}/latest, or give no `upload`",
        ) from error


def _is_same(storage: Storage, path: Path) -> bool:
    try:
        return storage.read(path.name) == path.read_bytes()
    except FileNotFoundError:
        return False


def _read_list(storage: Storage) -> set[str]:
    try:
        return set(json.loads(storage.read(_LIST)))
    except FileNotFoundError:
        return set()
