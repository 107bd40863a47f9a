"""Trackers of experiments: they get a run's numbers, from one rank, and go on with it when it is resumed."""

import resource
import sys
import threading

import pytest
from launchers import ROOT, launch, settings

from shards.errors import UserError
from xmodal import cli
from xmodal.training.trackers import TrackedRun, open_trackers


def test_wandb_gets_the_numbers_and_goes_on_with_the_run_that_is_resumed(small_view, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    output = tmp_path / "run"
    more = "--epochs=2", "--trackers=[wandb]", "--wandb_project=crowd"
    first = launch("torchrun", settings(small_view, output, *more, "--max_steps=9"))
    assert first.returncode == 0, first.stdout
    second = launch("python", settings(small_view, output, *more))
    assert second.returncode == 0, second.stdout
    folders = sorted(path for path in (output / "wandb").glob("offline-run-*"))
    # `offline-run-TIME-ID`: two ranks made one of them, and the resumed run has the same id.
    assert len(folders) == 2
    assert len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
    for folder in folders:
        [file] = folder.glob("run-*.wandb")
        content = file.read_bytes()
        for said in (b"step/loss", b"validation/recall_macro", b"global_batch_size", b"crowd"):
            assert said in content, said
        for path in (small_view, tmp_path, ROOT):
            assert str(path).encode() not in content, path
        assert not list(folder.rglob("output.log"))  # lines on the terminal may name posts
    assert not (output / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_told_in_two_lines_before_the_run(small_view, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for dry in ([], ["--dry-run"]):
        assert cli.main(["train", *settings(small_view, tmp_path / "run", "--trackers=[wandb]"), *dry]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2
        assert "trackers: wandb is not installed" in told[0]
        assert "pip install 'xmodal[wandb]'" in told[1]
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_named_twice_is_refused(small_view, tmp_path, capsys):
    assert cli.main(["train", *settings(small_view, tmp_path / "run", "--trackers=[wandb,wandb]")]) == 2
    assert "names one twice" in capsys.readouterr().err


def test_where_the_disk_takes_no_more_of_tensorboard_it_is_told(tmp_path, monkeypatch):
    # It is TensorBoard's own thread that fails, and says so; then it tells whoever gives it more.
    monkeypatch.setattr(threading, "excepthook", lambda said: None)
    run = TrackedRun(folder=tmp_path, run_id="1", wandb_project="", settings={}, resumed_step=0)
    [tracker] = open_trackers(["tensorboard"], run)

    def log_much() -> None:
        for step in range(1000):
            tracker.log({"step/loss": 1.0}, step)
        tracker.close()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            log_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.what == f"{tmp_path / 'tensorboard'}: cannot be written to: File too large"
