"""`xmodal export`: the student of a checkpoint is the trainer's, with a card that says where it comes from."""

import base64
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from launchers import free_port, launch, settings, train_in_turn
from safetensors.torch import load_file, save_file

from shards.errors import UserError
from xmodal import cli
from xmodal.model_card import model_card
from xmodal.students import load_student
from xmodal.training.checkpoint import committed_steps, read_weights
from xmodal.training.export import ExportConfig, export, find_checkpoint
from xmodal.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def runs(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs lie: `averaged`, and `plain` without a moving average."""
    folder = tmp_path_factory.mktemp("runs")
    plain, averaged = (
        settings(small_view, folder / name, "--epochs=2", "--optimizer.lr=1e-2") for name in ("plain", "averaged")
    )
    train_in_turn(1, [plain, [*averaged, "--optimizer.ema_decay=0.9"]], folder)
    return folder


@pytest.fixture(scope="module")
def averaged(runs: Path) -> Path:
    """A run that keeps a moving average."""
    return runs / "averaged"


@pytest.fixture(scope="module")
def plain(runs: Path) -> Path:
    """The same run without one."""
    return runs / "plain"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_average_is_what_the_trainer_exported(averaged, tmp_path, capsys):
    assert cli.main(["export", str(averaged), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "step-00000018, step 18" in said
    assert "ema, " in said
    assert_equal(weights(tmp_path / "out"), weights(averaged / "student"))
    assert (tmp_path / "out" / "config.json").read_text() == (averaged / "student" / "config.json").read_text()
    pictures = torch.randn(2, 3, 32, 32)
    ours, theirs = (
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pictures)
        for folder in (tmp_path / "out", averaged / "student")
    )
    assert torch.equal(ours, theirs)


def test_raw_weights_are_those_of_a_run_without_an_average(averaged, plain, tmp_path):
    summary = export(ExportConfig(checkpoint=str(averaged), output=str(tmp_path / "out"), weights="raw"))
    assert summary.weights == "raw"
    assert_equal(weights(tmp_path / "out"), weights(plain / "student"))
    assert not torch.equal(weights(tmp_path / "out")["head.weight"], weights(averaged / "student")["head.weight"])


def test_an_earlier_checkpoint_is_an_earlier_student(plain, tmp_path):
    earlier = plain / "checkpoints" / committed_steps(plain / "checkpoints")[0]
    summary = export(ExportConfig(checkpoint=str(earlier), output=str(tmp_path / "out")))
    assert summary.step == 9
    first, second = (line for line in read_metrics(plain) if line["kind"] == "validation")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{first['kl']:.4f}" in card
    assert f"{second['kl']:.4f}" not in card


def test_a_checkpoint_is_found_by_the_run_by_name_and_by_itself(plain):
    checkpoints = plain / "checkpoints"
    newest = checkpoints / committed_steps(checkpoints)[-1]
    for path in (plain, checkpoints, newest, checkpoints / "latest"):
        assert find_checkpoint(path) == newest
    assert find_checkpoint(checkpoints / "best").parent == checkpoints


def test_what_is_no_run_is_refused(plain, tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="no moving average"):
        export(ExportConfig(checkpoint=str(plain), output=str(tmp_path / "out"), weights="ema"))
    assert not (tmp_path / "out").exists()


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["run", ".", "run/checkpoints", "run/checkpoints/step-00000018", "run/config.json"])
def test_neither_the_run_nor_what_holds_it_is_replaced_by_its_student(plain, tmp_path, monkeypatch, capsys, output):
    shutil.copytree(plain, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    for spelt in (output, str(tmp_path / output)):
        assert cli.main(["export", "run", spelt]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2
        assert told[0].startswith(f"xmodal: {spelt}: ")
        assert "give a new or an empty folder" in told[1]
    assert files_below(tmp_path) == before
    assert cli.main(["export", "run", "run/student"]) == 0


def test_training_does_not_begin_where_its_student_could_not_be_written(small_view, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.tex").touch()
    done = launch("python", settings(small_view, tmp_path))
    assert done.returncode == 2, done.stdout
    assert f"{tmp_path}/student: holds thesis.tex, so it is no student" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "metrics.jsonl").exists()
    assert (tmp_path / "student" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "commit.json: not JSON"),
        ("", "commit.json: not JSON"),
        ("[]", "commit.json: holds no JSON object"),
        ('{"step": 18}', "commit.json: world_size: missing, or no int"),
        ('{"step": 18, "world_size": 1}', "commit.json: stream: missing, or no dict"),
        ('{"step": 18, "world_size": 3, "stream": {"fingerprint": ""}}', "step-00000018: cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_two_lines(plain, tmp_path, capsys, content, said):
    run = shutil.copytree(plain, tmp_path / "run")
    (run / "checkpoints" / "step-00000018" / "commit.json").write_text(content)
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert said in told[0]
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_version_is_refused(plain, tmp_path):
    run = shutil.copytree(plain, tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings["student"]["no_such_setting"] = 1
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no_such_setting"):
        export(ExportConfig(checkpoint=str(run), output=str(tmp_path / "out")))


def test_the_card_says_where_the_student_comes_from_and_what_it_is_not_for(averaged, small_view, tmp_path):
    export(ExportConfig(checkpoint=str(averaged), output=str(tmp_path / "out")))
    card = (tmp_path / "out" / "README.md").read_text()
    view = json.loads((small_view / "view.json").read_text())
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert f"`{provenance['view_fingerprint']}`" in card
    assert "train: 158 pictures" in card
    assert view["counts"]["splits"]["train"] == 158
    for said in ("kind adamw", "lr 0.01", "16 pictures", "the moving average", "agreement", "Not for decisions"):
        assert said in card
    assert "learned from the soft labels that" in " ".join(card.split())
    # The trainer's own student has the same card.
    assert (averaged / "student" / "README.md").read_text() == card
    for file in ("README.md", "provenance.json"):
        assert str(averaged) not in (tmp_path / "out" / file).read_text()
        assert str(small_view) not in (tmp_path / "out" / file).read_text()


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("soft", "the soft labels that"),
        ("hard", "hard labels, the most probable classes by the soft labels that"),
        ("mixed", "the soft labels, and the most probable classes by them, that"),
    ],
)
def test_the_card_says_what_labels_a_student_learned_from(averaged, kind, learned):
    provenance = json.loads((averaged / "student" / "provenance.json").read_text())
    provenance["config"]["loss"]["kind"] = kind
    card = model_card(architecture="vit", num_parameters=1, head="linear", size=32, loading="", provenance=provenance)
    said = " ".join(card.split())
    assert f"It learned from {learned} a text teacher gave to the texts of posts; no person annotated" in said


def test_buffers_of_many_ranks_are_their_mean(tmp_path):
    for rank, value in enumerate((1.0, 4.0)):
        shares = {"buffer:mean": torch.full((2,), value), "buffer:count": torch.tensor(rank + 7)}
        shares |= {f"weight:w{rank}": torch.tensor([1.0]), f"ema:w{rank}": torch.tensor([2.0])} if rank else {}
        shares |= {} if rank else {"weight:frozen": torch.tensor([3.0])}
        save_file(shares, tmp_path / f"rank-{rank:05d}.safetensors")
    found = read_weights(tmp_path, 2, "ema")
    assert {name: value.tolist() for name, value in found.items()} == {
        "mean": [2.5, 2.5], "count": 7, "frozen": [3.0], "w1": [2.0],
    }  # fmt: skip
    assert read_weights(tmp_path, 2, "weight")["w1"].tolist() == [1.0]


def test_onnx_that_is_not_installed_is_told_before_anything_is_written(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed"):
        export(ExportConfig(checkpoint=str(plain), output=str(tmp_path / "out"), onnx=True))
    assert not (tmp_path / "out").exists()


def test_onnx_says_what_the_student_says_of_any_number_of_pictures(averaged, tmp_path):
    summary = export(ExportConfig(checkpoint=str(averaged), output=str(tmp_path / "out"), onnx=True))
    assert summary.onnx_difference is not None
    assert summary.onnx_difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    pictures = torch.randn(5, 3, 32, 32)
    [logits] = session.run(None, {"pixels": pictures.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), load_student(str(tmp_path / "out"))(pictures))


def test_a_student_that_says_nothing_is_not_found_equal_to_its_onnx(plain, tmp_path):
    run = shutil.copytree(plain, tmp_path / "run")
    path = find_checkpoint(run) / "rank-00000.safetensors"
    held = load_file(path)
    held["weight:head.bias"].fill_(torch.nan)
    save_file(held, path)
    with pytest.raises(UserError, match="its logits differ from the student's by up to nan"):
        export(ExportConfig(checkpoint=str(run), output=str(tmp_path / "out"), onnx=True))
    assert not (tmp_path / "out" / "model.onnx").exists()


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as an upload of small files asks for; keeps what was committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:  # the base class's name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            if self.server.created[-1].get("organization") != "somebody":
                self.send_error(403, "Forbidden")
            else:
                self.answer({"url": f"{self.server.url}/somebody/student"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/somebody/student/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path == "/api/models/somebody/student/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/somebody/student/commit/abc", "commitOid": "abc"})
        else:
            self.send_error(404, self.path)

    def answer(self, document: dict) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hub_url(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return hub.url


def test_the_folder_is_pushed_to_a_private_repository(hub, hub_url, plain, tmp_path, capsys):
    assert cli.main(["export", str(plain), str(tmp_path / "out"), "--push-to-hub", "somebody/student"]) == 0
    assert f"{hub_url}/somebody/student" in capsys.readouterr().out
    assert hub.created[0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_test"}
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_hub_that_refuses_is_told_in_two_lines(hub_url, plain, tmp_path, capsys):
    assert cli.main(["export", str(plain), str(tmp_path / "out"), "--push-to-hub=nobody/student"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("xmodal: push_to_hub: nobody/student: ")
    assert "403" in told[0] or "404" in told[0]
    assert "HF_TOKEN" in told[1]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "http://127.0.0.1:{port}:80"])
def test_a_hub_that_cannot_be_reached_is_told_in_two_lines(plain, tmp_path, monkeypatch, capsys, endpoint):
    url = endpoint.format(port=free_port())
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert cli.main(["export", str(plain), str(tmp_path / "out"), "--push-to-hub", "somebody/student"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"xmodal: push_to_hub: somebody/student: {url} cannot be reached: ")
    assert f"the student is in {tmp_path / 'out'}" in told[1]
    assert load_student(str(tmp_path / "out"))
