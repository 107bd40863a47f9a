import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import launchers
import made_pictures
import numpy as np
import pytest
import s3_servers
import torch

from shards.errors import UserError
from shards.storage import open_storage
from xmodal import cli
from xmodal.benchmarks import load_benchmark
from xmodal.config import load_config
from xmodal.evaluation.evaluate import EvaluateConfig, evaluate, predictions_csv, score, short_names
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
    assert set(metrics) == {"n", "left_out", "missing", "partial", *expected}
    # Not the calibration error: it is never below 0, so that draws, which are noisier, have a larger one.
    assert all(metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] for name in METRICS)


def test_undecodable_pictures_are_left_out_and_counted_and_make_the_result_partial(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())["pictures"]
    assert (metrics["n"], metrics["left_out"], metrics["partial"]) == (24, 2, True)


def test_what_the_student_tells_apart_by_little_is_not_tied_in_the_file(picture_benchmark):
    """A student that is sure: all its probabilities are near 0 and 1, and their order is still that of the file."""
    benchmark = load_benchmark(str(picture_benchmark))
    generator = np.random.default_rng(0)
    logits = np.stack([-9 - generator.random(26), np.full(26, -20), 9 + generator.random(26)], axis=1)
    sure = torch.tensor(logits, dtype=torch.float32).softmax(dim=1).double().numpy()
    lines = predictions_csv(benchmark, sure).decode().splitlines()[1:]
    saved = np.array([line.split(",")[1:4] for line in lines], dtype=float)
    assert np.array_equal(saved.astype(np.float32), sure.astype(np.float32))
    before, after = (score(benchmark, one, num_draws=5, seed=0)["auc"] for one in (sure, saved))
    assert after == before


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
        # Sums over batches of other sizes are rounded otherwise.
        assert [float(row[name]) for row in rows] == pytest.approx(numbers, abs=2e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("models", "complaint"),
    [
        (("none", "none"), "none: no such folder"),
        (("tiny", "none"), "rank 1: none: no such folder"),
        (("tiny", "diverged"), "rank 1: student: "),
        (("diverged", "diverged"), "student: its outputs are no finite numbers"),
    ],
)
def test_what_is_wrong_on_any_process_ends_all_and_the_first_tells_it(
    models, complaint, tiny_student, diverged_student, picture_benchmark
):
    folder_of = {"tiny": str(tiny_student), "diverged": str(diverged_student)}
    given = [["-m", folder_of.get(model, model), "-b", str(picture_benchmark)] for model in models]
    first, second = launchers.told_by_ranks(given, "launch/evaluate.py")
    assert first.count(f"xmodal: {complaint}") == 1
    assert "xmodal: " not in second


def test_predictions_that_the_first_process_cannot_write_end_all(tiny_student, picture_benchmark, tmp_path):
    file = tmp_path / "long.yaml"
    # Too long for a file that is named after it.
    file.write_text(picture_benchmark.read_text().replace("name: pictures", f"name: {'long' * 60}"))
    given = ["-m", str(tiny_student), "-b", str(file), str(picture_benchmark), "--output", str(tmp_path / "out")]
    first, second = launchers.told_by_ranks([given, given], "launch/evaluate.py")
    assert first.count("xmodal: ") == first.count("cannot be written to: File name too long") == 1
    assert "xmodal: " not in second


def test_which_pictures_there_are_is_what_the_first_process_finds(tiny_student, picture_benchmark, tmp_path):
    """On the other one's host, two of them are missing."""
    definition = tmp_path / "relative.yaml"
    definition.write_text(picture_benchmark.read_text().replace(str(picture_benchmark.parent), "pictures"))
    for name in ("here", "there"):
        shutil.copytree(picture_benchmark.parent, tmp_path / name / "pictures")
    for name in ("flat-0.img", "deep-1.img"):
        (tmp_path / "there" / "pictures" / name).unlink()
    given = ["-m", str(tiny_student), "-b", str(definition), "--allow-missing", "--num_draws", "5"]
    given += ["--json", str(tmp_path / "metrics.json")]
    ranks = launchers.start_ranks(
        [[*given, "--root", str(tmp_path / name)] for name in ("here", "there")],
        "launch/evaluate.py",
        CUDA_VISIBLE_DEVICES="",
    )
    codes, outputs = launchers.wait_for_ranks(ranks)
    assert codes == [0, 0], outputs
    alone = evaluate(EvaluateConfig(models=[str(tiny_student)], benchmarks=[str(picture_benchmark)], num_draws=5))
    metrics = json.loads((tmp_path / "metrics.json").read_text())["pictures"]
    assert metrics == pytest.approx(alone.judgements[0].metrics)


@pytest.fixture(scope="module")
def other_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, in a folder of the same name."""
    torch.manual_seed(5)
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY))
    folder = tmp_path_factory.mktemp("other") / "tiny"
    export_student(model, str(folder), crop_share=1.0, provenance={})
    return folder


@pytest.fixture(scope="module")
def classed_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes, of which four are missing, in the form that the paper's have."""
    folder = tmp_path_factory.mktemp("classed")
    (folder / "images").mkdir()
    for number in range(8):
        (folder / "images" / f"{number}.jpg").write_bytes(made_pictures.jpeg(seed=number))
    rows = "".join(f"{number}.jpg,{2 * (number % 2)}\n" for number in range(12))
    (folder / "table.csv").write_text(f"path,class\n{rows}")
    file = folder / "classed.yaml"
    file.write_text("name: classed\nimages: images\nlabels: table.csv\nclasses: {0: negative, 2: positive}\n")
    return file


def test_several_students_on_several_benchmarks(
    tiny_student, other_student, picture_benchmark, classed_benchmark, evaluated, tmp_path, capsys
):
    arguments = [
        "evaluate", "-m", str(tiny_student), str(other_student), "-b", str(picture_benchmark), str(classed_benchmark),
        "--root", str(classed_benchmark.parent), "--allow-missing", "--num_draws", "20",
        "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json"), "--html", str(tmp_path / "all.html"),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    names = [f"{folder.parent.name}/tiny" for folder in (tiny_student, other_student)]
    rows = [line.split()[:3] for line in printed.splitlines()[1:5]]
    expected = [[name, benchmark, n] for name in names for benchmark, n in (("pictures", "24*"), ("classed", "8*"))]
    assert rows == expected
    assert "* partial: of classed, 4 pictures are missing" in printed
    assert "* partial: of pictures, 2 cannot be decoded" in printed
    assert printed.count(f"{names[0]} / {names[1]}: accuracy ") == 2

    document = json.loads((tmp_path / "all.json").read_text())
    assert list(document["models"]) == names
    assert [one["benchmark"] for one in document["comparisons"]] == ["pictures", "classed"]
    partial = document["models"][names[1]]["classed"]
    assert (partial["missing"], partial["partial"], partial["n"]) == (4, True, 8)
    assert "rank_correlation" not in partial
    whole, alone = document["models"][names[0]]["pictures"], json.loads((evaluated / "metrics.json").read_text())
    assert whole["auc"] == pytest.approx(alone["pictures"]["auc"])

    for name in names:
        folder = tmp_path / "out" / name.replace("/", "-")
        assert {file.name for file in folder.iterdir()} == {"predictions-pictures.csv", "predictions-classed.csv"}
        with open(folder / "predictions-classed.csv", newline="") as lines:
            predicted = list(csv.DictReader(lines))
        assert [row["path"] for row in predicted] == [f"{number}.jpg" for number in range(12)]
        assert [row["positive"] == "nan" for row in predicted] == [False] * 8 + [True] * 4
    page = (tmp_path / "all.html").read_text()
    assert page.count("<h2>") == 5
    assert page.count("confidence</text>") == 4
    assert "Partial: 4 pictures are missing" in page


def test_missing_pictures_are_told_with_what_would_allow_them(tiny_student, classed_benchmark):
    config = EvaluateConfig(
        models=[str(tiny_student)], benchmarks=[str(classed_benchmark)], root=str(classed_benchmark.parent)
    )
    with pytest.raises(UserError, match=r"8\.jpg: no such picture \(4 of 12 are missing\)") as caught:
        evaluate(config)
    assert "--allow-missing" in caught.value.remedy


@pytest.mark.parametrize(
    ("table_format", "start"),
    [("markdown", "| benchmark | n | accuracy |"), ("csv", "model,benchmark,n,accuracy,accuracy_low"), ("json", "{")],
)
def test_the_table_can_have_other_forms(tiny_student, picture_benchmark, table_format, start, capsys):
    arguments = ["-m", str(tiny_student), "-b", str(picture_benchmark), "--num_draws", "3", "--format", table_format]
    assert cli.main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(start)
    if table_format == "json":
        assert json.loads(printed)["pictures"]["n"] == 24


def test_students_are_told_apart_by_as_little_of_their_paths_as_it_takes():
    assert short_names(["runs/a"]) == ["a"]
    # Every training calls its student's folder so.
    assert short_names(["runs/a/student"]) == ["a/student"]
    assert short_names(["runs/a/student", "ViT_L16"]) == ["a/student", "ViT_L16"]
    assert short_names(["student"]) == ["student"]
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["runs/a/student", "runs/b/student", "c"]) == ["a/student", "b/student", "c"]
    assert short_names(["/a/x", "a/x"]) == ["/a/x", "a/x"]


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


def test_a_student_whose_outputs_are_no_numbers_is_blamed_and_not_the_pictures(picture_benchmark, diverged_student):
    with pytest.raises(UserError, match="student: its outputs are no finite numbers"):
        evaluate(EvaluateConfig(models=[str(diverged_student)], benchmarks=[str(picture_benchmark)]))


def test_models_whose_predictions_would_overwrite_each_other_are_refused_before_anything_is_done(
    picture_benchmark, tmp_path
):
    output = tmp_path / "out"
    config = EvaluateConfig(
        models=["runs/a/student", "runs/a-student"], benchmarks=[str(picture_benchmark)], output=str(output)
    )
    complaint = "output: a/student and a-student would both have their predictions in a-student"
    with pytest.raises(UserError, match=complaint):
        evaluate(config)
    assert not output.exists()
    # Without an output none is lost: it is the student that is not there.
    with pytest.raises(UserError, match="runs/a/student: no config"):
        evaluate(replace(config, output=None))


def test_all_that_is_written_may_lie_on_s3(
    tiny_student, other_student, picture_benchmark, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    models = ["-m", str(tiny_student), str(other_student), "-b", str(picture_benchmark), "--num_draws", "5"]
    files = {"--output": "out", "--json": "out/scores.json", "--html": "out/pages/page.html"}
    local = [text for key, file in files.items() for text in (key, str(tmp_path / file))]
    assert cli.main(["evaluate", *models, *local]) == 0
    written = {str(file.relative_to("out")): file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    with s3_servers.moto() as endpoint:
        for name, value in s3_servers.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        at = f"s3://{s3_servers.BUCKET}/some"
        remote = [text for key, file in files.items() for text in (key, f"{at}/{file}")]
        assert cli.main(["evaluate", *models, *remote]) == 0
        out = open_storage(f"{at}/out")
        assert {name: out.read(name) for name in out.names_below()} == written
        assert len(written) == 4
        # What is not there is told before anything is done.
        for key, url in (("--output", "s3://none/out"), ("--json", "s3://none/a.json"), ("--html", "s3://none/a.html")):
            capsys.readouterr()
            assert cli.main(["evaluate", "-m", "none", "-b", str(picture_benchmark), key, url]) == 2
            assert "s3://none: no such bucket" in capsys.readouterr().err.replace("/out: no", ": no")
        assert cli.main(["evaluate", "-m", "none", "-b", str(picture_benchmark), "--json", "s3://a.json"]) == 2
        assert "s3://a.json: names no file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "outputs", [{"output": "/dev/null"}, {"output": "/proc/1/x"}, {"json": "/proc"}, {"html": "/proc"}], ids=str
)
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
        (["--models", "[a, ./a/]"], "must not name one student's folder twice"),
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
