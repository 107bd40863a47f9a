"""Copies of checkpoints on another storage: complete or absent, the same as here, and enough to go on from."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import s3_servers
from fault_proxy import Fault, proxying
from launchers import launch, losses, settings, start_ranks, wait_for_ranks, wait_for_step

from shards.errors import UserError
from shards.s3_storage import S3Storage
from shards.storage import LocalStorage, Storage
from xmodal.training.checkpoint import Keep, committed_steps
from xmodal.training.upload import Upload, fetch_checkpoints

KEEP = Keep(last=2)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server."""
    with s3_servers.moto() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of a bucket of it, for one test alone."""
    for name, value in s3_servers.environment(endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_servers.BUCKET}/{tmp_path.name}"


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


def test_a_run_whose_machine_is_lost_selects_the_best_of_before_and_keeps_what_it_kept(small_view, tmp_path, bucket):
    more = (
        "--epochs=4", "--select=kl", "--checkpoint_every_steps=5", "--keep_every_steps=10", "--keep_checkpoints=4",
        f"--upload={bucket}",
    )  # fmt: skip
    output, remote = tmp_path / "run", S3Storage(bucket)
    done = launch("python", settings(small_view, output, *more, "--max_steps=27"))
    assert done.returncode == 0, done.stdout
    # Made at 5, 9 (an epoch's end), 10, 15, 18, 20, 25, 27; it learns, so the newest is the best.
    assert uploaded(remote) == [10, 18, 20, 25, 27]
    # As if that of the second epoch had been, by far.
    best = remote.below("step-00000018")
    best.replace("commit.json", json.dumps(json.loads(best.read("commit.json")) | {"validation_cost": -1.0}).encode())
    remote.replace("best", b"step-00000018")
    shutil.rmtree(output)
    done = launch("python", settings(small_view, output, *more))
    assert done.returncode == 0, done.stdout
    assert "resuming at step 27 of 36" in done.stdout
    assert json.loads((output / "student" / "provenance.json").read_text())["steps"] == 18
    # Then at 30, 35 and 36.
    assert uploaded(remote) == [10, 18, 20, 27, 30, 35, 36]
    assert (remote.read("latest"), remote.read("best")) == (b"step-00000036", b"step-00000018")


def uploaded(remote: S3Storage) -> list[int]:
    """Steps of the complete checkpoints of a bucket; nothing else may lie there."""
    names = json.loads(remote.read("checkpoints.json"))
    assert sorted({name.split("/")[0] for name in remote.names_below() if "/" in name}) == names
    assert all(remote.below(name).exists("commit.json") for name in names)
    return [int(name[5:]) for name in names]


def write_checkpoint(folder: Path, step: int, cost: float | None = None) -> str:
    """A run's folder with one more checkpoint, of two files."""
    name = f"step-{step:08d}"
    checkpoint = folder / "checkpoints" / name
    checkpoint.mkdir(parents=True)
    for rank in range(2):
        (checkpoint / f"rank-{rank:05d}.safetensors").write_bytes(os.urandom(100))
    commit = {"step": step, "world_size": 2, "validation_cost": cost}
    (checkpoint / "commit.json").write_text(json.dumps(commit))
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
    upload = Upload(tmp_path / "run", storage, KEEP)
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
    upload = Upload(tmp_path / "run", storage, KEEP)
    third = write_checkpoint(tmp_path / "run", 3)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == [second, third]
    assert storage.read("latest").decode() == third


def test_a_checkpoint_that_is_dropped_while_it_is_copied_is_absent_there_and_told(tmp_path, caplog):
    storage = Slow(tmp_path / "remote")
    upload = Upload(tmp_path / "run", storage, KEEP)
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
    fetch_checkpoints(storage, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    newest = write_checkpoint(tmp_path / "run", 3)
    upload = Upload(tmp_path / "run", storage, KEEP)
    upload.start()
    assert upload.is_done(60)
    write_checkpoint(tmp_path / "new", 2)
    fetch_checkpoints(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints")[-1] == newest
    for path in (tmp_path / "run" / "checkpoints" / newest).iterdir():
        assert (tmp_path / "new" / "checkpoints" / newest / path.name).read_bytes() == path.read_bytes()
    ahead = write_checkpoint(tmp_path / "new", 4)
    fetch_checkpoints(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints")[-1] == ahead


def copy_of(run: Path, storage: Storage, keep: Keep = KEEP) -> None:
    upload = Upload(run, storage, keep)
    upload.start()
    assert upload.is_done(60)


def test_what_lies_there_whole_stays_though_it_is_dropped_here_before_the_two_are_compared(tmp_path):
    run, storage, keep = tmp_path / "run", Slow(tmp_path / "remote"), Keep(last=3)
    first, second = write_checkpoint(run, 1), write_checkpoint(run, 2)
    copy_of(run, storage, keep)
    # Another process's, which is held up within the newest.
    upload = Upload(run, storage, keep)
    third = write_checkpoint(run, 3)
    storage.asked.clear()
    storage.may_go_on.clear()
    upload.start()
    assert storage.asked.wait(60)
    shutil.rmtree(run / "checkpoints" / first)
    storage.may_go_on.set()
    assert upload.is_done(60)
    assert there(storage) == [first, second, third]


def test_the_newest_is_named_though_an_older_one_cannot_be_copied(tmp_path, caplog):
    storage = LocalStorage(tmp_path / "remote", create=True)
    (tmp_path / "remote" / write_checkpoint(tmp_path / "run", 1)).touch()  # where its folder would lie
    newest = write_checkpoint(tmp_path / "run", 2)
    copy_of(tmp_path / "run", storage)
    assert "step-00000001: cannot be a folder" in caplog.text
    assert storage.read("latest").decode() == newest


def test_metrics_that_grow_while_they_are_copied_can_be_fetched(tmp_path, bucket, monkeypatch):
    newest, hashed = write_checkpoint(tmp_path / "run", 3), hashlib.file_digest

    def hash_and_take_a_step(file: IO[bytes], name: str) -> Any:
        found = hashed(file, name)
        with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"kind": "step", "step": 4}\n')
        return found

    monkeypatch.setattr(hashlib, "file_digest", hash_and_take_a_step)
    copy_of(tmp_path / "run", S3Storage(bucket))
    fetch_checkpoints(S3Storage(bucket), tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints") == [newest]


def test_a_storage_that_cannot_be_used_is_a_users_mistake(tmp_path):
    (tmp_path / "remote" / "checkpoints.json").mkdir(parents=True)
    with pytest.raises(UserError, match="remote: cannot be used for copies of checkpoints: "):
        Upload(tmp_path / "run", LocalStorage(tmp_path / "remote"), KEEP)


def test_a_lost_folder_with_few_checkpoints_drops_none_that_are_kept(tmp_path, bucket):
    storage, keep = S3Storage(bucket), Keep(last=1, every_steps=12)
    for step, cost in ((12, 0.5), (24, 0.1), (27, 0.2)):
        write_checkpoint(tmp_path / "lost", step, cost)
    copy_of(tmp_path / "lost", storage, keep)
    on_storage = set(storage.names_below())
    fetch_checkpoints(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints") == ["step-00000024", "step-00000027"]
    for name, said in (("latest", "step-00000027"), ("best", "step-00000024")):
        assert (tmp_path / "new" / "checkpoints" / name).read_text() == said
    copy_of(tmp_path / "new", storage, keep)
    assert set(storage.names_below()) == on_storage
    newest = write_checkpoint(tmp_path / "new", 30, 0.3)
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "step-00000027")  # as the run does
    copy_of(tmp_path / "new", storage, keep)
    assert uploaded(storage) == [12, 24, 30]
    assert (storage.read("latest"), storage.read("best")) == (newest.encode(), b"step-00000024")


def test_what_is_newer_than_where_the_run_goes_on_counts_for_nothing_and_is_not_dropped(tmp_path):
    storage, keep = LocalStorage(tmp_path / "remote", create=True), Keep(last=1)
    for step, cost in ((3, 0.5), (6, 0.4), (9, 0.1)):
        write_checkpoint(tmp_path / "lost", step, cost)
    copy_of(tmp_path / "lost", storage, Keep(last=3))
    storage.replace("latest", b"step-00000006\n")  # as a user writes it
    fetch_checkpoints(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints") == ["step-00000006"]
    copy_of(tmp_path / "new", storage, keep)
    assert there(storage) == ["step-00000006", "step-00000009"]
    assert (storage.read("latest"), storage.read("best")) == (b"step-00000006", b"step-00000006")


@pytest.mark.parametrize("is_killed_before_its_upload", [False, True])
def test_what_the_lost_run_did_beyond_is_dropped_once_this_run_is_past_it(tmp_path, is_killed_before_its_upload):
    storage, keep = LocalStorage(tmp_path / "remote", create=True), Keep(last=1, every_steps=450)
    for step, cost in ((300, 0.5), (457, 0.1), (470, 0.2)):
        write_checkpoint(tmp_path / "lost", step, cost)
    copy_of(tmp_path / "lost", storage, Keep(last=3))
    storage.replace("latest", b"step-00000300")
    fetch_checkpoints(storage, tmp_path / "new")
    upload = Upload(tmp_path / "new", storage, keep)
    write_checkpoint(tmp_path / "new", 460, 0.4)
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "step-00000300")  # as the run does
    if is_killed_before_its_upload:
        upload = Upload(tmp_path / "new", storage, keep)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == ["step-00000460", "step-00000470"]
    assert storage.read("best") == b"step-00000460"
    # It comes to a step of the lost one's: then it is its own.
    newest = write_checkpoint(tmp_path / "new", 470, 0.3)
    upload.start()
    assert upload.is_done(60)
    assert there(storage) == ["step-00000460", newest]
    assert storage.read("best").decode() == newest


def test_a_best_checkpoint_that_is_gone_does_not_keep_a_run_from_going_on(tmp_path, caplog):
    storage = LocalStorage(tmp_path / "remote", create=True)
    newest = write_checkpoint(tmp_path / "run", 3)
    copy_of(tmp_path / "run", storage)
    storage.replace("best", b"step-00000001")
    fetch_checkpoints(storage, tmp_path / "new")
    assert committed_steps(tmp_path / "new" / "checkpoints") == [newest]
    assert "step-00000001, the best checkpoint, does not lie on" in caplog.text


def test_a_fetch_that_was_broken_off_goes_on_with_the_files_that_are_missing(tmp_path, bucket, monkeypatch):
    newest = write_checkpoint(tmp_path / "run", 3)
    copy_of(tmp_path / "run", S3Storage(bucket))
    with proxying(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        proxy.plan = lambda method, path, number: Fault(flip_at=5) if path.endswith("rank-00001.safetensors") else None
        with pytest.raises(UserError, match="is damaged"):
            fetch_checkpoints(S3Storage(bucket), tmp_path / "new")
        assert committed_steps(tmp_path / "new" / "checkpoints") == []
        proxy.plan = lambda method, path, number: None
        fetch_checkpoints(S3Storage(bucket), tmp_path / "new")
        asked = {path.rpartition("/")[2]: number for (_, path), number in proxy.requests.items() if "rank-" in path}
        assert asked == {"rank-00000.safetensors": 1, "rank-00001.safetensors": 2}
    checkpoints = tmp_path / "new" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", newest]
    for path in (tmp_path / "run" / "checkpoints" / newest).iterdir():
        assert (checkpoints / newest / path.name).read_bytes() == path.read_bytes()


def test_files_of_another_checkpoint_of_the_same_step_are_fetched_anew(tmp_path):
    storage = LocalStorage(tmp_path / "remote", create=True)
    newest = write_checkpoint(tmp_path / "run", 3)
    copy_of(tmp_path / "run", storage)
    staged = tmp_path / "new" / "checkpoints" / f".tmp-{newest}"
    shutil.copytree(tmp_path / "run" / "checkpoints" / newest, staged)
    (staged / "commit.json").write_text("{}")
    (staged / "rank-00000.safetensors").write_text("of before")
    (staged / "rank-00007.safetensors").write_text("of before")
    (staged.parent / ".tmp-step-00000002").mkdir()
    fetch_checkpoints(storage, tmp_path / "new")
    fetched = tmp_path / "new" / "checkpoints" / newest
    assert sorted(path.name for path in fetched.parent.iterdir()) == ["latest", newest]
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints" / newest).iterdir()
    }


def test_a_newest_checkpoint_that_is_not_there_ends_all_ranks_and_the_first_tells_it(small_view, tmp_path):
    LocalStorage(tmp_path / "remote", create=True).replace("latest", b"step-00000003")
    arguments = settings(small_view, tmp_path / "run", f"--upload={tmp_path / 'remote'}")
    codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [2, 2], outputs
    assert f"xmodal: {tmp_path / 'remote'}: cannot be fetched to" in outputs[0]
    assert "Traceback" not in "".join(outputs)
    assert "xmodal: " not in outputs[1]


def open_pipe(path: Path, ranks: Sequence[subprocess.Popen[str]]) -> IO[str]:
    """To write to it, once one of the ranks reads it; they must be running."""
    deadline = time.monotonic() + 200
    while True:
        try:
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "w")
        except OSError as error:
            if error.errno != errno.ENXIO:  # that nobody reads it
                raise
        assert time.monotonic() < deadline
        for process in ranks:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_ranks_wait_for_a_fetch_however_long_it_takes(small_view, tmp_path):
    arguments = settings(small_view, tmp_path / "run", f"--upload={tmp_path / 'remote'}", "--peer_timeout=15")
    done = launch("python", [*arguments, "--max_steps=2"])
    assert done.returncode == 0, done.stdout
    shutil.rmtree(tmp_path / "run")
    # Whoever reads it waits for what is written to it.
    newest = tmp_path / "remote" / "latest"
    newest.unlink()
    os.mkfifo(newest)
    ranks = start_ranks([[*arguments, "--max_steps=3"]] * 2)
    with open_pipe(newest, ranks) as pipe:
        time.sleep(20)
        assert [process.poll() for process in ranks] == [None, None]
        newest.unlink()
        newest.write_text("step-00000002")  # whoever reads it later does not wait
        pipe.write("step-00000002")
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [0, 0], outputs
    assert "resuming at step 2 of 3" in outputs[0]


def test_a_stop_waits_for_the_copy_for_a_set_time_and_the_next_start_makes_it(small_view, tmp_path):
    remote = tmp_path / "remote"
    # Whoever looks whether this copy is there waits for ever.
    (remote / "step-00000004").mkdir(parents=True)
    os.mkfifo(remote / "step-00000004" / "commit.json")
    arguments = settings(
        small_view, tmp_path / "run", f"--upload={remote}", "--checkpoint_every_steps=4", "--keep_checkpoints=9"
    )
    ranks = start_ranks([[*arguments, "--epochs=60", "--upload_grace=2"]] * 2)
    wait_for_step(tmp_path / "run", 5, ranks)
    (tmp_path / "run" / "stop").touch()
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [75, 75], outputs
    assert "not all checkpoints are uploaded as yet; the next start goes on with that" in outputs[0]
    assert there(LocalStorage(remote)) == ["step-00000004"]
    (remote / "step-00000004" / "commit.json").unlink()
    done = committed_steps(tmp_path / "run" / "checkpoints")
    more = f"--max_steps={int(done[-1][5:]) + 1}"
    codes, outputs = wait_for_ranks(start_ranks([[*arguments, "--epochs=60", more]] * 2))
    assert codes == [0, 0], outputs
    assert set(done) < set(there(LocalStorage(remote)))


def test_a_run_that_is_done_waits_for_its_copies_and_after_a_stop_request_for_a_set_time(small_view, tmp_path):
    run, remote = tmp_path / "run", tmp_path / "remote"
    # Whoever looks whether this copy is there waits for ever.
    (remote / "step-00000004").mkdir(parents=True)
    os.mkfifo(remote / "step-00000004" / "commit.json")
    arguments = settings(small_view, run, f"--upload={remote}", "--max_steps=4", "--upload_grace=2")
    ranks = start_ranks([arguments] * 2)
    deadline = time.monotonic() + 200
    while not (run / "student" / "provenance.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(4)
    assert [process.poll() for process in ranks] == [None, None]
    ranks[1].send_signal(signal.SIGTERM)
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [75, 75], outputs
    assert "not all checkpoints are uploaded as yet; the next start goes on with that" in outputs[0]
    (remote / "step-00000004" / "commit.json").unlink()
    codes, outputs = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [0, 0], outputs
    assert there(LocalStorage(remote)) == ["step-00000004"]
