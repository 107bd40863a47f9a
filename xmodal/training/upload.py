"""Copies of a run's complete checkpoints on another storage, such as S3, made while training goes on."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import TEMPORARY_PREFIX, CorruptObjectError, LocalStorage, Storage
from xmodal.training import metrics_file
from xmodal.training.checkpoint import COMMIT_FILE, Keep, best_step, committed_steps, folder_name, kept_steps, sync

log = logging.getLogger(__name__)

_LIST = "checkpoints.json"
"""Names all folders of which something may lie there: storages list objects, not folders."""
_ALSO = ("config.json", metrics_file.NAME)
_Commit = tuple[int, float | None]
"""Of a checkpoint: its step, and what it cost in validation, if that was measured."""


class Upload:
    """Copies what a run's folder has of complete checkpoints to a storage, in a thread: no step waits for it.

    There as here `commit.json` comes last and goes first, and `latest` and `best` name complete ones. What stays there
    is what `keep` says of those that lie there: a run whose folder was lost has few of them here. What fails is logged,
    and done with the next checkpoint.
    """

    def __init__(self, folder: Path, storage: Storage, keep: Keep) -> None:
        """Raises UserError where the storage may not be read or written."""
        self._folder, self._storage, self._keep = folder, storage, keep
        try:
            self._known = _read_list(storage)
            latest = _read_name(storage, "latest")
            self._write_list()
        except OSError as error:
            raise UserError(
                f"{storage.url}: cannot be used for copies of checkpoints: {error}", "see to it, or give another upload"
            ) from error
        # What lies there beyond `latest` is of a run that went on from there and was lost, until it is written anew.
        self._lost = {name for name in self._known if name > latest}
        self._complete: set[str] = set()  # of those here
        self._commits: dict[str, _Commit] = {}  # of those there
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
                # Read once: the run goes on writing, and what is hashed must be what is sent.
                self._storage.replace(name, (self._folder / name).read_bytes())
        # The newest first: it is what is lost with this machine.
        missing = [name for name in reversed(committed_steps(checkpoints)) if name not in self._complete]
        for name in missing:
            try:
                self._copy(checkpoints / name)
            except FileNotFoundError:
                log.warning("%s was dropped before it was uploaded; if often, raise keep_checkpoints", name)
            # After each: those that are left may take long, or fail.
            self._name_and_drop(checkpoints)
        if not missing:  # what failed of it the last time
            self._name_and_drop(checkpoints)

    def _name_and_drop(self, checkpoints: Path) -> None:
        """Have `latest` and `best` there name what lies there by now, and drop what is not kept."""
        here = set(committed_steps(checkpoints))
        if not self._complete & here:
            return
        newest = max(self._complete & here)
        # What the lost run did beyond that stays for whoever wants to go on from it. It counts for nothing; once this
        # run is past it, it goes, before `latest` hides that it was the lost one's.
        for name in sorted(self._lost):
            if name <= newest:
                self._drop(name)
        self._storage.replace("latest", newest.encode())
        commits = self._commits_there()
        past = {step: cost for name, (step, cost) in commits.items() if name not in self._lost}
        best = best_step({step: cost for step, cost in past.items() if cost is not None})
        if best is not None:
            self._storage.replace("best", folder_name(best).encode())
        kept = {folder_name(step) for step in kept_steps(sorted(past), self._keep, best)}
        kept |= here | (self._lost & commits.keys())
        for name in sorted(self._known - kept):
            self._drop(name)

    def _commits_there(self) -> dict[str, _Commit]:
        """Those of the checkpoints that are complete there; each is read once."""
        for name in self._known - self._commits.keys():
            with suppress(FileNotFoundError):
                self._commits[name] = _parse_commit(self._storage.below(name).read(COMMIT_FILE), self._storage, name)
        return self._commits

    def _copy(self, source: Path) -> None:
        self._known.add(source.name)
        self._write_list()
        target = self._storage.below(source.name, create=True)
        if not _is_same(target, source / COMMIT_FILE):  # it is, of a run that goes on
            self._commits.pop(source.name, None)
            target.delete(COMMIT_FILE)
            names = sorted(path.name for path in source.iterdir() if path.name != COMMIT_FILE)
            for name in [*names, COMMIT_FILE]:
                target.put_file(name, source / name)
        self._complete.add(source.name)
        self._lost.discard(source.name)

    def _drop(self, name: str) -> None:
        folder = self._storage.below(name)
        self._commits.pop(name, None)
        folder.delete(COMMIT_FILE)
        with suppress(FileNotFoundError):
            for rest in folder.names():
                folder.delete(rest)
        for names in (self._complete, self._lost, self._known):
            names.discard(name)
        self._write_list()

    def _write_list(self) -> None:
        self._storage.replace(_LIST, json.dumps(sorted(self._known)).encode() + b"\n")


def wait_for_upload(
    upload: Upload | None,
    device: torch.device,
    progress: Callable[[], None],
    is_asked: Callable[[], bool],
    grace: float,
) -> bool:
    """All ranks wait for the one that has an `upload`: launchers end those that are left soon after one has ended.

    Once any of them `is_asked` to stop, they wait for `grace` seconds more; the next start copies what is left. Returns
    whether nothing is but what has failed, on all of them the same. `progress` and `is_asked` are called about every
    second.
    """
    deadline = math.inf
    is_done = is_over = False
    while not is_over:
        progress()
        is_done = upload is None or upload.is_done(1.0)
        votes = torch.tensor([is_done, is_done or time.monotonic() >= deadline, not is_asked()], device=device).int()
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        is_done, is_over, goes_on = (bool(vote) for vote in votes.tolist())
        if not goes_on:
            deadline = min(deadline, time.monotonic() + grace)
    if upload and not is_done:
        log.warning("not all checkpoints are uploaded as yet; the next start goes on with that")
    return is_done


def fetch_checkpoints(storage: Storage, folder: Path) -> None:
    """Bring the newest checkpoint that was uploaded, and the best, into a run's `folder`, unless that has one as new.

    What an earlier try has brought whole is not read again. Raises UserError where the storage may not be read, the
    copy is damaged, or the disk takes no more.
    """
    checkpoints = folder / "checkpoints"
    try:
        newest, best = _read_name(storage, "latest"), _read_name(storage, "best")
        is_wanted = newest > max(committed_steps(checkpoints), default="")
        # The newest comes last: it says that nothing more is to be fetched. A best one that is newer yet is of a run
        # that is to go on from before it.
        wanted = [name for name in (best if best < newest else "", newest) if name] if is_wanted else []
        if len(wanted) == 2 and not storage.below(best).exists(COMMIT_FILE):
            log.warning("%s, the best checkpoint, does not lie on %s any more", best, storage.url)
            wanted = [newest]
        for leftover in checkpoints.glob(f"{TEMPORARY_PREFIX}step-*"):
            if leftover.name.removeprefix(TEMPORARY_PREFIX) not in wanted:
                shutil.rmtree(leftover, ignore_errors=True)
        for name in wanted:
            if name == newest:
                for also in _ALSO:
                    with suppress(FileNotFoundError):
                        LocalStorage(folder, create=True).replace(also, storage.read(also))
            _fetch(storage.below(name), checkpoints, name)
            LocalStorage(checkpoints).replace("latest" if name == newest else "best", name.encode())
    except CorruptObjectError as error:
        raise UserError(
            f"{storage.url}: the copy of a checkpoint is damaged: {error}",
            f"put the names of complete ones into {storage.url}/latest and /best, or give no `upload`",
        ) from error
    except OSError as error:
        raise UserError(
            f"{storage.url}: cannot be fetched to {checkpoints}: {error}",
            "see to both; started again, it goes on with what is missing",
        ) from error


def _fetch(source: Storage, checkpoints: Path, name: str) -> None:
    """Bring one checkpoint, which is visible once it is whole."""
    if name in committed_steps(checkpoints):
        return
    log.info("%s is fetched from %s", name, source.url)
    commit = source.read(COMMIT_FILE)
    staged, target = checkpoints / f"{TEMPORARY_PREFIX}{name}", checkpoints / name
    # It says of which one the files are that an earlier try has brought.
    if not (staged / COMMIT_FILE).is_file() or (staged / COMMIT_FILE).read_bytes() != commit:
        shutil.rmtree(staged, ignore_errors=True)
        LocalStorage(staged, create=True).replace(COMMIT_FILE, commit)
    for file in source.names():
        if not (staged / file).exists():
            _fetch_file(source, file, staged)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(staged, target)
    sync(checkpoints)


def _fetch_file(source: Storage, name: str, folder: Path) -> None:
    """Under its name there is nothing but the whole file: what is read is compared with its checksum."""
    temporary = folder / f"{TEMPORARY_PREFIX}{name}"
    with open(temporary, "wb") as file:
        file.writelines(source.chunks(name))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / name)
    sync(folder)


def _read_name(storage: Storage, name: str) -> str:
    """The checkpoint that this object names; empty if there is no such object."""
    try:
        return storage.read(name).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _parse_commit(content: bytes, storage: Storage, name: str) -> _Commit:
    commit = parse_json_object(content, f"{storage.url}/{name}/{COMMIT_FILE}", f"remove {name} there", {"step": int})
    return commit["step"], commit.get("validation_cost")


def _is_same(storage: Storage, path: Path) -> bool:
    """Whether a file lies there as it is here. Raises FileNotFoundError if it is not here."""
    content = path.read_bytes()
    try:
        return storage.read(path.name) == content
    except FileNotFoundError:
        return False


def _read_list(storage: Storage) -> set[str]:
    try:
        return set(json.loads(storage.read(_LIST)))
    except FileNotFoundError:
        return set()
