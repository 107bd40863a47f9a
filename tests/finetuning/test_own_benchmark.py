"""A benchmark of the paper's form, a CSV `path,class` and pictures, goes through evaluate, crossval and table."""

import csv
import json
from pathlib import Path

import pytest
from launchers import launch
from optional_data import FOLDER, needs
from reference_metrics import (
    saved_predictions,
    three_class_by_sklearn,
    two_class_by_sklearn,
    two_class_by_torchmetrics,
)

from xmodal import cli
from xmodal.benchmarks import load_definition

LABELS, PICTURES_PER_CLASS = "mvsa/labels_dev.csv", 35
FOLDS = [f"fold-{number}" for number in (1, 2, 3)]


def benchmark_of_tweets(folder: Path) -> Path:
    """The definition of a benchmark of real tweets' pictures, where they lie."""
    with (FOLDER / LABELS).open(newline="") as file:
        judged = [(row["path"], row["image_class"]) for row in csv.DictReader(file)]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class"])
        for own in ("0", "1", "2"):
            writer.writerows([row for row in judged if row[1] == own][:PICTURES_PER_CLASS])
    definition = folder / "tweets.yaml"
    definition.write_text(
        f"name: tweets\nimages: {FOLDER}/mvsa\nlabels: {folder}/table.csv\n"
        "classes: {0: negative, 1: neutral, 2: positive}\nprotocols: [zero_shot, five_fold]\n"
    )
    return definition


@pytest.fixture(params=["made", pytest.param("tweets", marks=needs(LABELS, "mvsa/images"))])
def benchmark(request: pytest.FixtureRequest, bright: Path, tmp_path: Path) -> Path:
    return bright if request.param == "made" else benchmark_of_tweets(tmp_path)


def test_a_new_benchmark_goes_through_all_verbs_and_its_metrics_are_those_of_other_programs(
    benchmark, beginner, tmp_path, capsys
):
    of_both = ["-m", str(beginner), "-b", str(benchmark), "--num_draws=20"]
    evaluated = [f"--output={tmp_path}/evaluated", f"--json={tmp_path}/beginner.json"]
    assert cli.main(["evaluate", *of_both, *evaluated]) == 0
    done = launch(
        "python",
        [
            *of_both, f"--output={tmp_path}/crossvalidated", f"--json={tmp_path}/finetuned.json", "--num_folds=3",
            "--train.epochs=2", "--train.global_batch_size=8", "--train.stream.num_workers=0",
        ],
        "launch/crossval.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    capsys.readouterr()
    assert cli.main(["table", f"{tmp_path}/beginner.json", f"{tmp_path}/finetuned.json", "--format=json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    definition = load_definition(str(benchmark))
    for student, files in {
        "beginner": [tmp_path / "evaluated" / f"predictions-{definition.name}.csv"],
        "finetuned": [tmp_path / "crossvalidated" / fold / "predictions.csv" for fold in FOLDS],
    }.items():
        [(name, found)] = json.loads((tmp_path / f"{student}.json").read_text()).items()
        predictions = saved_predictions(*files)
        by_sklearn = two_class_by_sklearn(*predictions)
        if definition.has_neutral:
            by_sklearn |= three_class_by_sklearn(*predictions)
        assert {metric: found[metric] for metric in by_sklearn} == pytest.approx(by_sklearn)
        by_torchmetrics = two_class_by_torchmetrics(*predictions)
        assert {metric: found[metric] for metric in by_torchmetrics} == pytest.approx(by_torchmetrics, abs=1e-6)
        [ours] = [cell["ours"] for cell in cells if (cell["model"], cell["benchmark"]) == (student, name)]
        assert ours == pytest.approx(100 * by_sklearn["accuracy"])
