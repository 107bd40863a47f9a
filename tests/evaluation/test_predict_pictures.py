"""`xmodal predict`: any pictures in, one table out, the same whatever interrupts it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import launchers
import made_pictures
import numpy as np
import pyarrow.parquet as pq
import pytest
import s3_servers
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from training_view import make_view
from unreadable import make_too_deep, without_rights

from shards.errors import UserError
from shards.storage import LocalStorage, open_storage
from shards.view import open_view, write_view
from shards.writer import Sample, write_shard
from xmodal.cli import main
from xmodal.evaluation.pictures import check_inputs, pictures_of
from xmodal.evaluation.predict import predict
from xmodal.evaluation.predict_pictures import PredictConfig, predict_pictures
from xmodal.evaluation.prediction_files import PredictionFiles
from xmodal.labels import CLASSES
from xmodal.students import load_student

ROOT = Path(__file__).parent.parent.parent
NUM_PICTURES = 20
BAD = {"cut.jpg": made_pictures.jpeg()[:300], "garbage.png": made_pictures.GARBAGE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder and one below it, two of them broken, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(NUM_PICTURES):
        below = folder / "more" if number % 3 == 0 else folder
        (below / f"{number:02d}.jpg").write_bytes(made_pictures.jpeg(60 + number, 48, seed=number))
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def config(tiny_student: Path, folder: Path, tmp_path: Path) -> PredictConfig:
    return PredictConfig(
        model=str(tiny_student), inputs=[str(folder)], output=str(tmp_path / "out.csv"), pictures_per_part=4
    )


def samples(count: int, seed: int = 0) -> list[Sample]:
    return [
        Sample(key=f"{seed}-{number}", image=made_pictures.jpeg(seed=seed + number), image_extension="jpg", fields={})
        for number in range(count)
    ]


def rows_of(file: str | Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def numbers_of(rows) -> np.ndarray:
    return np.array([[float(row[name]) for name in CLASSES] for row in rows])


def failures_beside(output: str | Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(f"{output}.failures.jsonl").read_text().splitlines()]


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_table_has_what_evaluation_predicts_and_the_failures_are_beside_it(config, folder, tmp_path):
    summary = predict_pictures(config)
    rows = rows_of(config.output)
    paths = [Path(row["path"]) for row in rows]
    assert paths == sorted(path for path in folder.rglob("*.jpg") if path.name not in BAD)
    expected = predict(load_student(config.model), paths, accelerator=Accelerator(cpu=True))
    np.testing.assert_allclose(numbers_of(rows), expected, atol=2e-6)
    assert [row["label"] for row in rows] == [CLASSES[place] for place in expected.argmax(axis=1)]
    assert {row["key"] for row in rows} == {""}
    failures = failures_beside(config.output)
    assert {Path(row["path"]).name: row["reason"].partition(":")[0] for row in failures} == dict.fromkeys(
        BAD, "cannot be decoded"
    )
    assert summary is not None
    assert (summary["pictures"], summary["failures"], sum(summary["labels"].values())) == (
        NUM_PICTURES,
        2,
        NUM_PICTURES,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.csv",
        "out.csv.failures.jsonl",
        "out.csv.summary.json",
    ]


def test_all_formats_say_the_same(config, tmp_path):
    made = {}
    for suffix in ("csv", "jsonl", "parquet"):
        output = tmp_path / suffix / f"table.{suffix}"
        predict_pictures(replace(config, output=str(output)))
        made[suffix] = output
    rows = rows_of(made["csv"])
    lines = [json.loads(line) for line in made["jsonl"].read_text().splitlines()]
    table = pq.read_table(made["parquet"]).to_pylist()
    assert list(lines[0]) == list(table[0]) == list(rows[0])
    for name in ("path", "label"):
        assert [row[name] for row in rows] == [row[name] for row in lines] == [row[name] for row in table]
    assert {row["key"] for row in lines} == {row["key"] for row in table} == {None}
    np.testing.assert_allclose(numbers_of(lines), numbers_of(rows), atol=1e-9)
    np.testing.assert_allclose(numbers_of(table), numbers_of(rows), atol=1e-6)


def test_files_folders_and_tars_go_together_in_the_order_they_are_named(config, folder, tmp_path):
    storage = LocalStorage(tmp_path / "tars", create=True)
    for number in range(3):
        write_shard(storage, f"{number}", samples(3, seed=10 * number))
    (tmp_path / "odd").write_bytes(made_pictures.png())
    pattern = f"{storage.url}/{{0..1}}.tar"
    predict_pictures(replace(config, inputs=[pattern, str(tmp_path / "odd"), storage.url]))
    places = [(row["path"].removeprefix(f"{tmp_path}/"), row["key"]) for row in rows_of(config.output)]
    in_tars = [(f"tars/{shard}.tar", f"{10 * shard}-{number}") for shard in range(3) for number in range(3)]
    assert places == [*in_tars[:6], ("odd", ""), *in_tars]


def test_a_slash_behind_a_folder_changes_no_path(folder):
    paths = [[picture.path for picture in pictures_of([f"{folder}{slash}"])] for slash in ("", "/", "//")]
    assert paths[0] == paths[1] == paths[2] == sorted(paths[0])


def test_a_tar_that_is_not_whole_is_a_failure_and_the_others_are_predicted(config, tmp_path):
    storage = LocalStorage(tmp_path / "tars", create=True)
    for number in range(3):
        write_shard(storage, f"{number}", samples(3, seed=10 * number))
        storage.delete(f"{number}.parquet")
    os.truncate(tmp_path / "tars" / "1.tar", 700)
    predict_pictures(replace(config, inputs=[storage.url]))
    assert len(rows_of(config.output)) == 6
    (failure,) = failures_beside(config.output)
    assert failure["path"].endswith("1.tar")
    assert "not a whole tar file" in failure["reason"]


def test_a_picture_whose_bytes_in_the_tar_have_changed_is_a_failure(config, tmp_path):
    storage = LocalStorage(tmp_path / "tars", create=True)
    write_shard(storage, "0", samples(2))
    content = bytearray(storage.read("0.tar"))
    content[content.index(b"JFIF") + 200] ^= 1
    (tmp_path / "tars" / "0.tar").write_bytes(content)
    predict_pictures(replace(config, inputs=[storage.url]))
    assert [row["key"] for row in rows_of(config.output)] == ["0-1"]
    assert "not those that were indexed" in failures_beside(config.output)[0]["reason"]


def test_a_file_that_goes_away_meanwhile_is_a_failure(config, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(made_pictures.png(seed=number))
    read = LocalStorage.read

    def removed_before(storage, name):
        if name == "1.png":
            (storage.folder / name).unlink()
        return read(storage, name)

    monkeypatch.setattr(LocalStorage, "read", removed_before)
    predict_pictures(replace(config, inputs=[str(tmp_path / "pictures")]))
    assert [Path(row["path"]).name for row in rows_of(config.output)] == ["0.png", "2.png"]
    assert [row["reason"] for row in failures_beside(config.output)] == ["is not there"]


def test_a_folder_below_that_cannot_be_listed_is_a_failure_and_the_others_are_predicted(config, tmp_path):
    pictures = tmp_path / "pictures"
    for name in ("a", "c"):
        (pictures / name).mkdir(parents=True)
        (pictures / name / "x.png").write_bytes(made_pictures.png())
    deep = make_too_deep(pictures / "b")
    predict_pictures(replace(config, inputs=[str(pictures)]))
    assert [row["path"] for row in rows_of(config.output)] == [f"{pictures}/{name}/x.png" for name in ("a", "c")]
    (failure,) = failures_beside(config.output)
    assert failure["path"] == f"{pictures}/{deep}/"
    assert failure["reason"] == "cannot be read: this folder cannot be listed"


@pytest.mark.parametrize("rights", [0o600, 0o300])
def test_an_input_that_may_not_be_looked_into_is_told(public_folder, rights):
    pictures = public_folder / "pictures"
    pictures.mkdir()
    (pictures / "x.png").write_bytes(made_pictures.png())
    pictures.chmod(rights)
    with without_rights(), pytest.raises(UserError, match="pictures: cannot be looked into: Permission denied"):
        check_inputs([str(pictures)])


def test_pictures_beside_a_tar_are_not_left_out_for_it(config, tmp_path, caplog):
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    for name in ("0.png", "below/1.png"):
        (pictures / name).write_bytes(made_pictures.png())
    made = LocalStorage(tmp_path / "made", create=True)
    write_shard(made, "backup", samples(2))
    (pictures / "backup.tar").write_bytes(made.read("backup.tar"))
    predict_pictures(replace(config, inputs=[str(pictures)]))
    assert [row["path"] for row in rows_of(config.output)] == [f"{pictures}/0.png", f"{pictures}/below/1.png"]
    told = f"{pictures}: read as a folder of pictures; its tars, which have no index, are left out"
    assert caplog.text.count(told) == 1


def test_pictures_beside_the_tars_of_a_dataset_are_left_out_and_it_is_told(config, tmp_path, caplog):
    storage = LocalStorage(tmp_path / "tars", create=True)
    write_shard(storage, "0", samples(2))
    settings = replace(config, inputs=[storage.url])
    check_inputs(settings.inputs)
    assert not caplog.text
    storage.replace("preview.png", made_pictures.png())
    predict_pictures(settings)
    assert [row["key"] for row in rows_of(config.output)] == ["0-0", "0-1"]
    assert caplog.text.count("tars: read as a dataset; the pictures that are in none of its tars are left out") == 1


def test_a_name_that_is_not_utf8_is_written_as_well_as_it_can_be(config, tmp_path):
    (tmp_path / "pictures").mkdir()
    with open(os.fsencode(tmp_path / "pictures") + b"/caf\xe9.png", "wb") as file:
        file.write(made_pictures.png())
    for suffix in ("csv", "jsonl", "parquet"):
        predict_pictures(replace(config, inputs=[str(tmp_path / "pictures")], output=str(tmp_path / f"out.{suffix}")))
    assert [Path(row["path"]).name for row in rows_of(config.output)] == ["caf\ufffd.png"]


def run_until_part(command: list[str], parts: Path, count: int, variables: dict[str, str]) -> None:
    """Start the command, and kill -9 it once it has written so many parts."""
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) < count:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_what_is_killed_goes_on_and_ends_as_if_undisturbed(config, folder, tmp_path, caplog):
    # Enough parts that it cannot end before it is killed.
    inputs = [str(folder)] * 40
    undisturbed = replace(config, inputs=inputs, output=str(tmp_path / "a" / "out.csv"))
    predict_pictures(undisturbed)
    killed = replace(undisturbed, output=str(tmp_path / "b" / "out.csv"))
    command = [
        sys.executable, "-m", "xmodal.cli", "predict", "-m", killed.model, *inputs, "--output", killed.output,
        "--pictures_per_part", "4",
    ]  # fmt: skip
    parts = tmp_path / "b" / ".out.csv.parts"
    run_until_part(command, parts, 1, {"OMP_NUM_THREADS": "2"})
    assert os.listdir(tmp_path / "b") == [parts.name]
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    caplog.clear()
    predict_pictures(killed)
    warned = len([record for record in caplog.records if "cannot be decoded" in record.getMessage()])
    # Each part that was there was left as it was, so not all bad pictures were met again.
    assert 0 < warned <= 80
    assert done
    (a, b) = (all_files(tmp_path / name) for name in ("a", "b"))
    assert a == b


@pytest.mark.parametrize("moment", ["put_file", "replace", "commit", "remove_parts"])
def test_what_is_ended_while_it_makes_the_table_goes_on_too(config, tmp_path, monkeypatch, moment):
    predict_pictures(replace(config, output=str(tmp_path / "a" / "out.csv")))
    ended = replace(config, output=str(tmp_path / "b" / "out.csv"))

    class Ended(BaseException):
        """As a kill does, it ends without anything after."""

    def end(*arguments):
        if moment != "commit" or arguments[-1] == "out.csv":
            raise Ended
        return commit(*arguments)

    commit = LocalStorage.commit
    with monkeypatch.context() as patched:
        owner = PredictionFiles if moment == "remove_parts" else LocalStorage
        patched.setattr(owner, moment, end)
        with pytest.raises(Ended):
            predict_pictures(ended)
    assert (tmp_path / "b" / "out.csv").exists() == (moment == "remove_parts")
    predict_pictures(ended)
    assert all_files(tmp_path / "a") == all_files(tmp_path / "b")
    assert sorted(os.listdir(tmp_path / "b")) == ["out.csv", "out.csv.failures.jsonl", "out.csv.summary.json"]


@pytest.mark.parametrize("method", ["write_part", "finish", "_read_part"])
def test_of_two_runs_at_once_one_is_told_that_the_other_was_faster(config, monkeypatch, method):
    slower = getattr(PredictionFiles, method)

    def after_another_run(*arguments):
        monkeypatch.undo()
        predict_pictures(config)
        return slower(*arguments)

    monkeypatch.setattr(PredictionFiles, method, after_another_run)
    with pytest.raises(UserError, match=r"out\.csv: another run of the same has made it"):
        predict_pictures(config)
    assert len(rows_of(config.output)) == NUM_PICTURES


def test_a_run_goes_on_with_another_batch_size(config, monkeypatch):
    """As where there is less memory than it was begun with."""

    class Ended(BaseException):
        pass

    write_part = PredictionFiles.write_part

    def end(files, number, *arguments):
        if number == 2:
            raise Ended
        write_part(files, number, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionFiles, "write_part", end)
        with pytest.raises(Ended):
            predict_pictures(replace(config, batch_size=512))
    for again in (replace(config, batch_size=3), config):  # the second one finds it done
        summary = predict_pictures(again)
        assert summary is not None
        assert summary["pictures"] == NUM_PICTURES
    paths = [Path(row["path"]) for row in rows_of(config.output)]
    expected = predict(load_student(config.model), paths, accelerator=Accelerator(cpu=True))
    np.testing.assert_allclose(numbers_of(rows_of(config.output)), expected, atol=2e-6)


def test_a_finished_table_is_left_as_it_is(config, folder, tiny_student):
    first = predict_pictures(config)
    before = Path(config.output).stat().st_mtime_ns
    assert predict_pictures(config) == first
    assert Path(config.output).stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"out\.csv: is of another tta: none, not flip"):
        predict_pictures(replace(config, tta="flip"))
    Path(f"{config.output}.summary.json").unlink()
    with pytest.raises(UserError, match=r"out\.csv: is there already"):
        predict_pictures(config)


def test_other_pictures_or_settings_than_before_are_told(config, folder, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(9):
        (pictures / f"{number}.png").write_bytes(made_pictures.png(seed=number))
    begun = replace(config, inputs=[str(pictures)])

    class Ended(BaseException):
        pass

    def end(*_):
        raise Ended

    with monkeypatch.context() as patched:
        patched.setattr(PredictionFiles, "finish", end)
        with pytest.raises(Ended):
            predict_pictures(begun)
    with pytest.raises(UserError, match=r"parts: is of another pictures_per_part: 4, not 5"):
        predict_pictures(replace(begun, pictures_per_part=5))
    (pictures / "00.png").write_bytes(made_pictures.png())
    with pytest.raises(UserError, match="the inputs held other pictures when it was written"):
        predict_pictures(begun)
    (pictures / "00.png").unlink()
    predict_pictures(begun)
    assert len(rows_of(config.output)) == 9


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"inputs": ["/nonexistent"]}, "/nonexistent: no such file or folder"),
        ({"inputs": [str(ROOT / "docs" / "nothing*.tar")]}, "no such shard"),
        ({"inputs": [str(ROOT / "launch")]}, "no picture lies there"),
        ({"output": "table.xlsx"}, "ends with none of .csv, .jsonl, .parquet"),
        ({"model": "VIT_L16"}, "VIT_L16: no such folder, and none of the paper's models"),
    ],
)
def test_a_mistake_is_told_before_anything_is_predicted(config, monkeypatch, tmp_path, settings, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        predict_pictures(replace(config, **settings))
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_view(tmp_path_factory.mktemp("view"), num_samples=24, samples_per_shard=10)


def test_a_view_is_predicted_whole_or_by_its_split(config, view):
    keys = {}
    for split in (None, "train", "val"):
        output = str(Path(config.output).with_name(f"{split}.jsonl"))
        predict_pictures(replace(config, inputs=[str(view)], split=split, output=output))
        rows = [json.loads(line) for line in Path(output).read_text().splitlines()]
        keys[split] = [(row["path"], row["key"]) for row in rows]
        assert all(row["path"].endswith(".tar") for row in rows)
    table = open_view(str(view)).table
    assert [key for _, key in keys[None]] == table["key"].to_pylist()
    assert sorted(keys["train"] + keys["val"]) == sorted(keys[None])
    with pytest.raises(UserError, match="split 'test' has no samples"):
        predict_pictures(replace(config, inputs=[str(view)], split="test"))
    # What has no splits is not taken whole for one.
    for other in (config.inputs[0], f"{config.inputs[0]}/00.tar"):
        with pytest.raises(UserError, match=f"{other} is no view, so it has no splits"):
            predict_pictures(replace(config, inputs=[str(view), other], split="val"))


def test_processes_share_the_parts_and_give_the_same_files(config, folder, tmp_path):
    predict_pictures(replace(config, output=str(tmp_path / "a" / "out.csv")))
    command = [
        str(launchers.BIN / "torchrun"), "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(launchers.free_port()), "launch/predict.py", "-m", config.model, str(folder),
        "--output", str(tmp_path / "b" / "out.csv"), "--pictures_per_part", "4",
    ]  # fmt: skip
    environment = launchers.environment() | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-2:] == ["failed", "2"]
    assert all_files(tmp_path / "a") == all_files(tmp_path / "b")


def arguments_of(config: PredictConfig) -> list[str]:
    return [
        "-m", config.model, *config.inputs, "--output", config.output,
        "--pictures_per_part", str(config.pictures_per_part),
    ]  # fmt: skip


def predict_by_two_ranks(*configs: PredictConfig) -> list[str]:
    return launchers.told_by_ranks(list(map(arguments_of, configs)), "launch/predict.py")


@pytest.mark.parametrize(
    ("model", "complaint"), [(None, "out.csv: is there already"), ("none", "none: no such folder")]
)
def test_a_mistake_ends_all_processes_and_is_told_once(config, model, complaint):
    Path(config.output).write_text("not of a run")
    refused = replace(config, model=model or config.model)
    first, second = predict_by_two_ranks(refused, refused)
    assert first.count(complaint) == 1
    assert "xmodal: " not in second


def test_what_is_wrong_on_one_process_alone_ends_all_and_the_first_tells_it(config, tmp_path, tiny_student):
    other = tmp_path / "other"
    shutil.copytree(tiny_student, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, other / "model.safetensors")
    first, second = predict_by_two_ranks(config, replace(config, model=str(other)))
    assert "xmodal: rank 1: student: " in first
    assert "xmodal: " not in second


def test_what_is_wrong_amid_the_work_of_one_process_ends_the_others_before_their_next_part(
    config, tmp_path, monkeypatch
):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        (pictures / f"{number}.png").write_bytes(made_pictures.png(seed=number))
    # Enough parts that the first process cannot be at its end before it learns of it.
    begun = replace(config, inputs=[str(pictures)] * 200)

    class Ended(BaseException):
        pass

    def end(*_):
        raise Ended

    with monkeypatch.context() as patched:
        patched.setattr(PredictionFiles, "write_part", end)
        with pytest.raises(Ended):
            predict_pictures(begun)
    # A part of the second process, from when other pictures were there.
    others = list(pictures_of([str(pictures)]))[:4]
    PredictionFiles(config.output).write_part(1, others, np.full((4, 3), 1 / 3), {})
    first, second = predict_by_two_ranks(begun, begun)
    assert first.count("xmodal: rank 1: ") == 1
    assert "the inputs held other pictures when it was written" in first
    assert "xmodal: " not in second
    assert 1 <= len(list(tmp_path.glob(".out.csv.parts/*.parquet"))) < 200


def test_pictures_datasets_and_views_on_s3_are_predicted_and_the_table_may_lie_there(config, folder, view, monkeypatch):
    with s3_servers.moto() as endpoint:
        for name, value in s3_servers.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        at = f"s3://{s3_servers.BUCKET}"
        for source, prefix in ((folder, "pictures"), (view.parent / "dataset", "dataset")):
            for path in source.rglob("*"):
                if path.is_file():
                    below = f"{at}/{prefix}/{path.relative_to(source).parent}".removesuffix("/.")
                    open_storage(below, create=True).put_file(path.name, path)
        opened = open_view(str(view))
        counts = {"counts": opened.description["counts"]}
        write_view(f"{at}/view", opened.table, opened.shards, datasets=[f"{at}/dataset"], description=counts)
        one = f"{at}/pictures/01.jpg"
        inputs = [f"{at}/pictures", one, f"{at}/dataset", f"{at}/view"]
        predict_pictures(replace(config, inputs=inputs, output=f"{at}/out/table.jsonl"))
        out = open_storage(f"{at}/out")
        assert out.names() == ["table.jsonl", "table.jsonl.failures.jsonl", "table.jsonl.summary.json"]
        assert sorted(out.names_below()) == out.names()
        rows = [json.loads(line) for line in out.read("table.jsonl").splitlines()]
        failures = [json.loads(line) for line in out.read("table.jsonl.failures.jsonl").splitlines()]
        with pytest.raises(UserError, match="nothing lies there"):
            predict_pictures(replace(config, inputs=[f"{at}/none"]))
    assert sorted(row["path"] for row in failures) == [f"{at}/pictures/{name}" for name in sorted(BAD)]
    local = replace(config, inputs=[str(folder), f"{folder}/01.jpg", str(view.parent / "dataset"), str(view)])
    predict_pictures(local)
    expected = rows_of(config.output)
    assert [row["key"] or "" for row in rows] == [row["key"] for row in expected]
    np.testing.assert_allclose(numbers_of(rows), numbers_of(expected), atol=2e-6)


def test_the_command_takes_files_and_settings_in_any_order(config, folder, tmp_path, capsys):
    output = str(tmp_path / "cli.jsonl")
    files = [str(folder / "01.jpg"), str(folder / "cut.jpg")]
    assert main(["predict", files[0], "-m", config.model, "--output", output, files[1], "--tta=flip"]) == 0
    first, *counts = capsys.readouterr().out.splitlines()
    assert first == output
    counted = {name: int(count) for name, count in (line.split() for line in counts)}
    assert (sum(counted[name] for name in CLASSES), counted["failed"]) == (1, 1)
    assert [json.loads(line)["path"] for line in Path(output).read_text().splitlines()] == files[:1]
    assert main(["predict", "-m", config.model]) == 2
    assert "inputs" in capsys.readouterr().err
