import csv
import json
import subprocess
from pathlib import Path

import launchers
import made_pictures
import numpy as np
import pytest
import torch

from shards.errors import UserError
from xmodal.benchmarks import load_benchmark
from xmodal.config import load_config
from xmodal.evaluation.evaluate import EvaluateConfig, evaluate, score
from xmodal.evaluation.metrics import METRICS, POLES
from xmodal.students import StudentConfig, create_student, export_student

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def evaluated(tiny_student: Path, picture_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process's metrics.json and predictions-pictures.csv."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(config_of(tiny_student, picture_benchmark, folder))
    return folder


def config_of(student: Path, benchmark: Path, folder: Path) -> EvaluateConfig:
    return EvaluateConfig(
        models=[str(student)],
        benchmarks=[str(benchmark)],
        output=str(folder),
        json=str(folder / "metrics.json"),
        batch_size=5,
        num_draws=100,
    )


def read_predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions-pictures.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_json_has_n_and_every_metric_with_its_interval(evaluated):
    document = json.loads((evaluated / "metrics.json").read_text())
    assert list(document) == ["pictures"]
    metrics = document["pictures"]
    names = [*METRICS, "calibration_error", *(f"confusion_{row}_{column}" for row in POLES for column in POLES)]
    expected = {f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")}
    assert set(metrics) == {"n", "left_out", "missing", *expected}
    # Not the calibration error: it is never below 0, so that draws, which are noisier, have a larger one.
    assert all(metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] for name in METRICS)


def test_undecodable_pictures_are_left_out_and_counted(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())["pictures"]
    assert (metrics["n"], metrics["left_out"]) == (24, 2)


def test_the_predictions_are_in_the_order_of_the_table(evaluated, picture_benchmark):
    rows = read_predictions(evaluated)
    benchmark = load_benchmark(str(picture_benchmark))
    assert list(rows[0]) == ["path", "negative", "neutral", "positive", "human_score"]
    assert [row["path"] for row in rows] == benchmark.paths
    assert [float(row["human_score"]) for row in rows] == benchmark.scores.tolist()
    for row in rows:
        total = sum(float(row[name]) for name in ("negative", "neutral", "positive"))
        assert total == pytest.approx(1, abs=1e-5) or "-x." in row["path"]


def test_the_metrics_are_those_of_the_predictions(evaluated, picture_benchmark):
    table = np.genfromtxt(evaluated / "predictions-pictures.csv", delimiter=",", skip_header=1)[:, 1:4]
    metrics = json.loads((evaluated / "metrics.json").read_text())["pictures"]
    assert score(load_benchmark(str(picture_benchmark)), table, num_draws=100, seed=0) == pytest.approx(metrics)


@pytest.mark.parametrize(("launcher", "num_processes"), [("torchrun", 2), ("accelerate", 3)])
def test_several_processes_give_the_same_files_as_one(
    launcher, num_processes, evaluated, tiny_student, picture_benchmark, tmp_path
):
    arguments = [
        "-m", str(tiny_student), "-b", str(picture_benchmark), "--output", str(tmp_path),
        "--json", str(tmp_path / "metrics.json"), "--batch_size", "5", "--num_draws", "100",
    ]  # fmt: skip
    start = {
        "torchrun": ["torchrun", "--nproc-per-node", str(num_processes), "--master-addr", "127.0.0.1",
                     "--master-port", str(launchers.free_port())],
        "accelerate": ["accelerate", "launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no",
                       "--num_processes", str(num_processes), "--dynamo_backend", "no",
                       "--num_cpu_threads_per_process", "1", "--main_process_port", str(launchers.free_port())],
    }[launcher]  # fmt: skip
    ended = subprocess.run(
        [str(launchers.BIN / start[0]), *start[1:], "launch/evaluate.py", *arguments],
        cwd=launchers.ROOT,
        # Without a GPU: two processes cannot share one by NCCL.
        env=launchers.environment() | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("balanced_accuracy") == 1
    metrics, alone = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, evaluated))
    assert metrics["pictures"] == pytest.approx(alone["pictures"])
    rows, rows_alone = (read_predictions(folder) for folder in (tmp_path, evaluated))
    assert [row["path"] for row in rows] == [row["path"] for row in rows_alone]
    for name in ("negative", "neutral", "positive", "human_score"):
        numbers = [float(row[name]) for row in rows_alone]
        # The last of the six digits may be rounded otherwise.
        assert [float(row[name]) for row in rows] == pytest.approx(numbers, abs=2e-6, nan_ok=True)


def test_no_files_are_written_unless_asked_for(tiny_student, picture_benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = EvaluateConfig(models=[str(tiny_student)], benchmarks=[str(picture_benchmark)], num_draws=5)
    assert evaluate(config).judgements[0].metrics["n"] == 24
    assert list(tmp_path.iterdir()) == []


def test_two_benchmarks_of_one_name_are_refused(tiny_student, picture_benchmark, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(picture_benchmark.read_text())
    config = EvaluateConfig(models=[str(tiny_student)], benchmarks=[str(picture_benchmark), str(other)])
    with pytest.raises(UserError, match="two are named 'pictures'"):
        evaluate(config)


def test_a_benchmark_without_a_decodable_picture_is_named(tiny_student, tmp_path):
    (tmp_path / "x.png").write_bytes(made_pictures.GARBAGE)
    (tmp_path / "labels.csv").write_text("path,score\nx.png,1\n")
    file = tmp_path / "broken.yaml"
    file.write_text(f"name: broken\nimages: {tmp_path}\nlabels: {tmp_path}/labels.csv\n")
    with pytest.raises(UserError, match="broken: none of its pictures can be decoded"):
        evaluate(EvaluateConfig(models=[str(tiny_student)], benchmarks=[str(file)]))


def test_a_student_whose_outputs_are_no_numbers_is_blamed_and_not_the_pictures(picture_benchmark, tmp_path):
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    export_student(model, str(tmp_path / "diverged"), crop_share=1.0, provenance={})
    with pytest.raises(UserError, match="student: its outputs are no finite numbers"):
        evaluate(EvaluateConfig(models=[str(tmp_path / "diverged")], benchmarks=[str(picture_benchmark)]))


@pytest.mark.parametrize("outputs", [{"output": "/dev/null"}, {"output": "/proc/1/x"}, {"json": "/proc"}], ids=str)
def test_an_output_that_cannot_be_written_is_told_before_the_student_is_looked_for(picture_benchmark, outputs):
    config = EvaluateConfig(models=["none"], benchmarks=[str(picture_benchmark)], **outputs)
    with pytest.raises(UserError, match=next(iter(outputs.values()))):
        evaluate(config)


def test_a_folder_that_is_no_student_is_named(picture_benchmark, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json, so this is no student"):
        evaluate(EvaluateConfig(models=[str(tmp_path)], benchmarks=[str(picture_benchmark)]))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--benchmarks", "[]"], "benchmarks: [] must name at least one"),
        (["--benchmarks", "[b.yaml, b.yaml]"], "must not name one benchmark twice"),
        (["--models", "[a, a]"], "must not name one student's folder twice"),
        (["--tta", "rotate"], "tta: "),
        (["--format", "latex"], "format: "),
        (["--batch_size", "-1"], "batch_size: -1 must be at least 0"),
        (["--num_workers", "-1"], "num_workers: -1 must be at least 0"),
        (["--num_draws", "0"], "num_draws: 0 must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_the_rule(arguments, what):
    given = ["--models", "[student]", "--benchmarks", "[b.yaml]", *arguments]
    with pytest.raises(UserError, match="command line: ") as caught:
        load_config(EvaluateConfig, given, command="xmodal evaluate", description="")
    assert what in caught.value.what
