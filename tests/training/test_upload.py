"""Copies of checkpoints on another storage: complete or absent, the same as here, and enough to go on from."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_servers
from launchers import launch, losses, settings

from shards.s3_storage import S3Storage
from shards.storage import LocalStorage
from xmodal.training.checkpoint import committed_steps
from xmodal.training.upload import Upload, fetch_newest


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix of a bucket of a server."""
    with s3_servers.moto() as endpoint:
        for name, value in s3_servers.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{s3_servers.BUCKET}/runs/1"


def test_a_run_whose_machine_is_lost_goes_on_exactly_from_the_copy_of_its_newest_checkpoint(
    small_view, tmp_path, bucket
):
    more = (
        "--epochs=3", "--frozen_epochs=1", "--optimizer.ema_decay=0.9", "--mixup=0.4", "--checkpoint_every_steps=4",
        "--keep_every_steps=12", "--keep_checkpoints=1", f"--upload={bucket}",
    )  # fmt: skip
    done = launch("python", settings(small_view, tmp_path, *more))
    assert done.returncode == 0, done.stdout
    # Made at 4, 8, 9 (an epoch's end), 12, 16, 18, 20, 24, 27; it learns, so the newest is the best.
    kept = ["step-00000012", "step-00000024", "step-00000027"]
    checkpoints, remote = tmp_path / "checkpoints", S3Storage(bucket)
    assert committed_steps(checkpoints) == json.loads(remote.read("checkpoints.json")) == kept
    for name in ("latest", "best"):
        assert (checkpoints / name).read_text() == remote.read(name).decode() == kept[-1]
    for name in kept:
        files = [path.name for path in sorted((checkpoints / name).iterdir())]
        assert files == remote.below(name).names()
        assert all((checkpoints / name / file).read_bytes() == remote.below(name).read(file) for file in files)

    unbroken, weights = losses(tmp_path), (tmp_path / "student" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path)
    # As if it had been lost after 24 steps.
    remote.replace("latest", kept[1].encode())
    done = launch("python", settings(small_view, tmp_path, *more))
    assert done.returncode == 0, done.stdout
    assert "resuming at step 24 of 27" in done.stdout
    assert losses(tmp_path) == unbroken
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == weights


def write_checkpoint(folder: Path, step: int) -> str:
    """A run's folder with one more checkpoint, of two files."""
    name = f"step-{step:08d}"
    checkpoint = folder / "checkpoints" / name
    checkpoint.mkdir(parents=True)
    for rank in range(2):
        (checkpoint / f"rank-{rank:05d}.safetensors").write_bytes(os.urandom(100))
    (checkpoint / "commit.json").write_text(json.dumps({"step": step, "world_size": 2}))
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("")
    return name


class Slow(LocalStorage):
    """A storage that may be held up within a checkpoint, and that may be out of order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, create=True)
        self.may_go_on, self.asked, self.is_broken = threading.Event(), threading.Event(), False
        self.may_go_on.set()

    def below(self, name: str, *, create: bool = False) -> "Slow":
        below = Slow(self.folder / name)
        below.may_go_on, below.asked, below.is_broken = self.may_go_on, self.asked, self.is_broken
        return below

    def put_file(self, name: str, path: Path) -> None:
        if name.startswith("rank-"):
            self.asked.set()
            assert self.may_go_on.wait(60)
        if self.is_broken:
            raise OSError("the disk is on fire")
        super().put_file(name, path)


def there(storage: LocalStorage) -> list[str]:
    """What could be loaded; nothing else may lie there."""
    complete = committed_steps(storage.folder)
    assert [path.name for path in sorted(storage.folder.glob("step-*")) if any(path.iterdir())] == complete
    return complete


def test_what_fails_is_copied_with_the_next_checkpoint_and_what_is_gone_here_is_dropped_there(tmp_path, caplog):
    storage = Slow(tmp_path / "remote")
    upload = Upload(tmp_path / "run", storage)
    storage.is_broken = True
    first = write_checkpoint(tmp_path / "run", 1)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == []
    assert f"checkpoints are not uploaded to {storage.url} as yet: the disk is on fire" in caplog.text
    storage.is_broken = False
    second = write_checkpoint(tmp_path / "run", 2)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == [first, second]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / first)
    # Another process's: it learns from the storage what lies there.
    upload = Upload(tmp_path / "run", storage)
    third = write_checkpoint(tmp_path / "run", 3)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == [second, third]
    assert storage.read("latest").decode() == third


def test_a_checkpoint_that_is_dropped_while_it_is_copied_is_absent_there_and_told(tmp_path, caplog):
    storage = Slow(tmp_path / "remote")
    upload = Upload(tmp_path / "run", storage)
    first = write_checkpoint(tmp_path / "run", 1)
    storage.may_go_on.clear()
    upload.start()
    assert storage.asked.wait(60)
    assert not upload.is_done(0)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / first)
    second = write_checkpoint(tmp_path / "run", 2)
    upload.start()
    storage.may_go_on.set()
    assert upload.is_done(60)
    assert there(storage) == [second]
    assert f"{first} was dropped before it was uploaded" in caplog.text


def test_only_what_is_newer_and_complete_is_fetched(tmp_path):
    storage = LocalStorage(tmp_path / "remote", create=True)
    fetch_newest(storage, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    newest = write_checkpoint(tmp_path / "run", 3)
    upload = Upload(tmp_path / "run", storage)
    upload.start()
    assert upload.is_done(60)
    write_checkpoint(tmp_path / "new", 2)
    fetch_newest(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints")[-1] == newest
    for path in (tmp_path / "run" / "checkpoints" / newest).iterdir():
        assert (tmp_path / "new" / "checkpoints" / newest / path.name).read_bytes() == path.read_bytes()
    ahead = write_checkpoint(tmp_path / "new", 4)
    fetch_newest(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints")[-1] == ahead
