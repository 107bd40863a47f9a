"""The whole way once, on a reduced setting: real Ray, HTTP, two DeepSpeed ranks, human labels."""

import json
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from launchers import ROOT, environment, free_port

from shards.dataset import shard_names
from shards.index import read_index
from shards.storage import LocalStorage
from shards.view import open_view
from xmodal import cli
from xmodal.benchmarks import load_benchmark
from xmodal.demo.server import serve_folder


@dataclass(frozen=True)
class Finished:
    """A demo that has run to its end."""

    output: Path
    port: int
    printed: str
    result: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    output, port = tmp_path_factory.mktemp("demo") / "run", free_port()
    done = run_demo(output, port)
    assert done.returncode == 0, done.stderr
    return Finished(output, port, done.stdout, json.loads((output / "result.json").read_text()))


def run_demo(output: Path, port: int) -> subprocess.CompletedProcess[str]:
    arguments = [f"--output={output}", f"--port={port}", "--num_posts=300", "--epochs=1"]
    clean = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "xmodal.cli", "demo", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True
    )


def test_the_demo_runs_the_whole_way_and_leaves_its_numbers(finished):
    counts = finished.result["counts"]
    assert counts["posts"] == 300
    assert counts["samples"] == counts["media"] > 550
    assert counts["failures"] == {}
    assert counts["train"] > 300
    assert counts["val"] > 10
    # The student is judged on all of the benchmark; the teacher only on those whose posts were labelled here.
    assert counts["benchmark"] == 796
    student, teacher = finished.result["student"], finished.result["teacher"]
    assert 0 <= student["auc_low"] <= student["auc"] <= student["auc_high"] <= 1
    assert teacher["auc"] > 0.6
    assert 0 < teacher["n"] < student["n"] == 796
    assert set(finished.result["seconds"]) == {"label", "curate", "train", "evaluate", "report"}
    for name in ("report.html", "train/student/model.safetensors", "train/metrics.jsonl", "dataset/dataset.json"):
        assert (finished.output / name).stat().st_size > 0
    for page in (finished.printed, (finished.output / "report.html").read_text()):
        assert f"{student['auc']:.3f}" in page
        assert f"{teacher['auc']:.3f}" in page


def test_other_libraries_read_what_the_demo_leaves(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import timm
    import webdataset

    num_samples = finished.result["counts"]["samples"]
    tars = sorted(str(path) for path in (finished.output / "dataset").glob("*.tar"))
    plain = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert len(plain) == num_samples
    assert {sample["png"].size[0] for sample in plain} == {64, 96}
    assert sum(plain[0]["json"]["soft_label"]) == pytest.approx(1)
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))
    assert len(loaded) == num_samples
    assert [sample["__key__"] for sample in plain] == loaded["__key__"][:]
    student = timm.create_model(f"local-dir:{finished.output / 'train' / 'student'}", pretrained=True)
    assert student.num_classes == 3


def test_no_emoji_that_people_judged_is_in_the_view(finished):
    judged = {Path(path).stem for path in load_benchmark("configs/benchmarks/emoji.yaml").paths}
    labelled = {
        row["post_id"]
        for name in shard_names(LocalStorage(finished.output / "dataset"))
        for row in read_index(LocalStorage(finished.output / "dataset"), name).select(["post_id"]).to_pylist()
    }
    viewed = {key.rsplit("-", 1)[0] for key in open_view(str(finished.output / "view")).table["key"].to_pylist()}
    assert judged & labelled
    assert viewed
    assert viewed <= labelled - judged


def test_the_demo_run_again_does_nothing_again_and_says_the_same(finished):
    again = run_demo(finished.output, finished.port)
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stderr
    result = json.loads((finished.output / "result.json").read_text())
    for name in ("counts", "student", "teacher"):
        assert result[name] == finished.result[name]
    # How long it takes to find nothing to do is not how long labelling and training take.
    for stage in ("label", "train"):
        assert result["seconds"][stage] == finished.result["seconds"][stage]


def assert_told(arguments: list[str], capsys: pytest.CaptureFixture[str], complaint: str) -> None:
    assert cli.main(["demo", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_fresh_demo_deletes_nothing_in_a_folder_that_it_did_not_make(tmp_path, capsys):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "precious").write_text("mine")
    assert_told([f"--output={tmp_path}", "--fresh=true"], capsys, "not made by the demo")
    assert (tmp_path / "dataset" / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [(("--num_ranks=3",), "cannot be shared equally by 3 ranks"), (("--output=/dev/null",), "cannot be a folder")],
    ids=["ranks", "output"],
)
def test_what_cannot_be_is_told_before_anything_is_done(tmp_path, capsys, caplog, more, complaint):
    caplog.set_level("INFO")
    assert_told([f"--output={tmp_path}", *more], capsys, complaint)
    assert not caplog.messages
    assert not list(tmp_path.iterdir())


def test_outside_the_clone_it_says_where_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_told([], capsys, "run the demo in the folder of the project's clone")


def test_a_client_that_goes_away_is_no_traceback_of_the_server(tmp_path, capfd):
    (tmp_path / "a").write_text("a")
    with serve_folder(str(tmp_path), 0) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in client.recv(1000)  # the server now waits for the next request
        # Reset the kept connection instead of closing it, as the death of a process with unread answers does.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_told(["--serve=true", f"--port={port}"], capsys, f"port {port} on 127.0.0.1")
