"""A published model by its name → a student in the models folder: downloaded or given, checked, converted, kept.

The authors publish no checksums. That of the first file that could be converted is kept beside the models, and a later
one of the same model must have it.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LocalStorage, told_to_user
from xmodal.models.convert import Conversion, convert, file_sha256
from xmodal.models.download import download
from xmodal.models.keras_file import UnfitFileError
from xmodal.published import PublishedModel, models_folder, pull_command, pulled_folder

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
"""In the models folder: model → `file` and `student`, the SHA-256 of the Keras file and of what it became."""


def pull(model: PublishedModel, *, url: str | None = None, file: str | None = None) -> Conversion | None:
    """Have a model as a student in `pulled_folder(model.name)`; returns what was found in the Keras file.

    Returns None for one that is there and whole: then nothing is asked of the network. `url` is another place than the
    release; a `file` that is here already is taken instead, and left as it is. Raises UserError where the file cannot
    be had, is no such model, or is another than the first time.
    """
    folder = models_folder()
    with told_to_user(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, model.name):
            return _pull(model, url or model.url, file, folder)


def download_name(model: PublishedModel, url: str) -> str:
    """Of a download until it is converted; of each URL another: what lies there may be left of an earlier pull."""
    return f"{model.name}-{hashlib.sha256(os.fsencode(url)).hexdigest()[:12]}.h5"


def _pull(model: PublishedModel, url: str | None, given: str | None, folder: Path) -> Conversion | None:
    target = pulled_folder(model.name)
    known = _checksums(folder).get(model.name, {})
    if target.is_dir():
        checksum = _student_checksum(target)
        if checksum and checksum == known.get("student"):
            return None
        log.warning("%s: is not as it was pulled; pulling it again", target)
    source = given or url
    if source is None:
        raise UserError(
            f"{model.name}: no release holds its weights",
            f"download {model.name}.h5 by hand, and `{pull_command(model.name)}`; or give --url URL",
        )
    work = folder / f".{model.name}"
    work.mkdir(exist_ok=True)
    file = Path(given) if given else work / download_name(model, source)
    if not given and not file.exists():
        download(source, file)
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    try:
        checksum = file_sha256(file)
        if known and checksum != known.get("file"):
            raise UnfitFileError(
                f"{source}: is not the file that was pulled before: SHA-256 {checksum}, then {known.get('file')}",
                f"if it may have changed, take {model.name} out of {folder / CHECKSUMS} and pull again",
            )
        done = convert(str(file), str(made / model.name), model=model, source=None if given else url)
    except UnfitFileError:
        if not given:
            file.unlink()  # it would be refused the next time too
        raise
    origin = {} if given else {"url": source}
    _keep_checksums(folder, model.name, {"file": checksum, "student": _student_checksum(made / model.name), **origin})
    if target.exists():  # moved aside in one step: the name stands for a whole student or for none
        os.rename(target, made / "retired")
    os.rename(made / model.name, target)
    shutil.rmtree(work)
    return done


def _student_checksum(student: Path) -> str | None:
    """Of the files that make it what it is; None where one is not there."""
    checksum = hashlib.sha256()
    try:
        for name in ("config.json", "model.safetensors"):
            with open(student / name, "rb") as opened:
                checksum.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return None
    return checksum.hexdigest()


def _checksums(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / CHECKSUMS
    remedy = "mend it, or remove it to accept what is pulled next"
    try:
        found = parse_json_object(path.read_bytes(), str(path), remedy)
    except FileNotFoundError:
        return {}
    for name, checksums in found.items():
        if not isinstance(checksums, dict):
            raise UserError(f"{path}: {name}: holds no checksums", remedy)
    return found


def _keep_checksums(folder: Path, name: str, checksums: dict[str, str | None]) -> None:
    # Read again: another process may have pulled another model meanwhile.
    with _alone(folder, CHECKSUMS):
        content = json.dumps(_checksums(folder) | {name: checksums}, indent=2)
        LocalStorage(folder).replace(CHECKSUMS, content.encode() + b"\n")


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One process at a time; the others wait, and then find what the first one made."""
    with open(folder / f".{name}.lock", "wb") as lock:  # never removed: another may be waiting for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
