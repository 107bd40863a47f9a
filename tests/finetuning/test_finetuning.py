"""`xmodal crossval` and `xmodal finetune-fi` through the real launchers, with the real trainer, on a tiny student."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launchers import ROOT, launch, losses, start_ranks, wait_for_ranks, wait_for_step
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from xmodal import cli
from xmodal.benchmarks import load_benchmark
from xmodal.evaluation.evaluate import score
from xmodal.finetuning.summary import read_predictions
from xmodal.students import has_mlp_head, load_student
from xmodal.training.metrics_file import read_metrics

FOLDS = [f"fold-{number}" for number in (1, 2, 3)]
CROSSVAL = "launch/crossval.py"


def arguments(beginner: Path, bright: Path, output: Path, *more: str) -> list[str]:
    """A few steps of batches of 8, at a rate at which they suffice."""
    return [
        "-m", str(beginner), "-b", str(bright), f"--output={output}", "--num_draws=50", "--train.global_batch_size=8",
        "--train.stream.num_workers=0", "--train.optimizer.lr=2e-3", "--train.log_every_steps=1", *more,
    ]  # fmt: skip


def folds(beginner: Path, bright: Path, output: Path, *more: str) -> list[str]:
    return arguments(beginner, bright, output, "--num_folds=3", "--train.epochs=4", *more)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "result.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "student" / "model.safetensors").read_bytes()


def files_of(folder: Path) -> dict[str, int]:
    """When each was written, but for checkpoints, which go once they are not needed."""
    files = {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    return {name: time for name, time in files.items() if not name.startswith("checkpoints/")}


@pytest.fixture(scope="module")
def crossvalidated(beginner: Path, bright: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks under `deepspeed`, undisturbed."""
    output = tmp_path_factory.mktemp("crossvalidated")
    done = launch("deepspeed", folds(beginner, bright, output, f"--json={output}/ours.json"), CROSSVAL)
    assert done.returncode == 0, done.stdout
    assert "mean ± std" in done.stdout
    assert "left out: pictures that cannot be decoded: 1" in done.stdout
    return output


def test_every_picture_is_held_out_once_and_its_duplicates_with_it(crossvalidated, bright):
    divided = rows(crossvalidated / "divisions.csv")
    fold_of = {row["path"]: [fold for fold in FOLDS if row[fold] == "test"] for row in divided}
    assert {row[fold] for row in divided for fold in FOLDS} == {"train", "test", ""}
    assert fold_of.pop("damaged-d.png") == []
    assert all(len(held_out) == 1 for held_out in fold_of.values())
    for number in range(0, 36, 4):
        for letter, first in (("a", number), ("b", number + 1)):  # two that share their judgement
            assert fold_of[f"{first}-{number // 4}{letter}.png"] == fold_of[f"{first + 2}-{number // 4}{letter}.png"]
    for number, name in ((3, "3-0b.png"), (4, "4-1a.png"), (5, "5-1b.png")):
        assert fold_of[f"copy-{number}-c{number}.jpg"] == fold_of[name]
    for fold in FOLDS:
        predicted = [row["path"] for row in rows(crossvalidated / fold / "predictions.csv")]
        assert predicted == [row["path"] for row in divided if row[fold] == "test"]
        assert load_student(str(crossvalidated / fold / "student")).num_classes == 3
        assert not (crossvalidated / fold / "checkpoints").exists()
        card = (crossvalidated / fold / "student" / "README.md").read_text()
        assert "fine-tuned on pictures of a benchmark" in card
        assert "no person annotated" not in card
    assert [one["crossing"] for one in result(crossvalidated)["divisions"]] == [0, 0, 0]


def test_metrics_are_sklearns_on_the_saved_predictions(crossvalidated, bright):
    found = result(crossvalidated)
    accuracies = []
    for fold, of_fold in zip(FOLDS, found["divisions"], strict=True):
        assert (of_fold["name"], of_fold["predictions"]) == (fold, f"{fold}/predictions.csv")
        predictions = rows(crossvalidated / of_fold["predictions"])
        polarity = [float(row["positive"]) - float(row["negative"]) for row in predictions]
        human = [float(row["human_score"]) > 0 for row in predictions]
        predicted = [value > 0 for value in polarity]
        accuracies.append(accuracy_score(human, predicted))
        assert of_fold["metrics"]["accuracy"] == pytest.approx(accuracies[-1])
        assert of_fold["metrics"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(human, predicted))
        assert of_fold["metrics"]["auc"] == pytest.approx(roc_auc_score(human, polarity))
        assert of_fold["test"] == len(predictions) == 39 - of_fold["train"]
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["std"]["accuracy"] == pytest.approx(np.sqrt(np.mean((accuracies - np.mean(accuracies)) ** 2)))
    # One that differs between these folds, as accuracy may not.
    errors = [one["metrics"]["calibration_error"] for one in found["divisions"]]
    assert found["std"]["calibration_error"] == pytest.approx(np.std(errors, ddof=0))
    assert np.std(errors) > 1e-4
    assert found["mean"]["accuracy"] > 0.8  # it has learned
    benchmark = load_benchmark(str(bright))
    places = [
        benchmark.paths.index(row["path"]) for fold in FOLDS for row in rows(crossvalidated / fold / "predictions.csv")
    ]
    probabilities = np.concatenate([read_predictions(crossvalidated / fold / "predictions.csv") for fold in FOLDS])
    expected = score(benchmark.subset(np.array(places)), probabilities, num_draws=50, seed=0)
    assert found["held_out"] == pytest.approx(expected, nan_ok=True)
    assert (found["undecodable"], found["unjudged"]) == (1, 0)


def test_the_papers_table_takes_the_metrics(crossvalidated, capsys):
    assert cli.main(["table", str(crossvalidated / "ours.json"), "--format", "json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    [ours] = [cell["ours"] for cell in cells if (cell["model"], cell["benchmark"]) == ("ours", "bright")]
    assert ours == pytest.approx(100 * result(crossvalidated)["held_out"]["accuracy"])


def test_each_fold_learns_from_the_beginner_by_the_papers_recipe(crossvalidated, beginner):
    config = json.loads((crossvalidated / "fold-2" / "config.json").read_text())
    assert config["student"]["model"] == f"local-dir:{beginner}"
    assert (config["student"]["head"], config["student"]["pretrained"]) == ("linear", True)
    assert (config["loss"]["kind"], config["loss"]["neutral"], config["optimizer"]["kind"]) == (
        "hard",
        "masked",
        "radam",
    )
    assert (config["augment"]["squash"], config["augment"]["flip"], config["frozen_epochs"]) == (True, False, 0)
    first = load_file(beginner / "model.safetensors")
    learned = load_file(crossvalidated / "fold-2" / "student" / "model.safetensors")
    for name, before in first.items():
        # It has moved from where it began, every layer of it, and not far.
        assert 0 < (learned[name] - before).abs().max() < 0.2, name


def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_as_if_it_had_not_been(
    crossvalidated, beginner, bright, tmp_path
):
    given = folds(beginner, bright, tmp_path)
    ranks = start_ranks([given] * 2, CROSSVAL)
    try:
        # In the second fold, past its first checkpoint.
        wait_for_step(tmp_path / "fold-2", 4, ranks)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    # The first fold; more of them where this machine was busy with something else at that moment.
    done = [fold for fold in FOLDS if (tmp_path / fold / "predictions.csv").exists()]
    assert done[0] == "fold-1"
    before = [files_of(tmp_path / fold) for fold in done]
    codes, outputs = wait_for_ranks(start_ranks([given] * 2, CROSSVAL))
    assert codes == [0, 0], outputs
    assert "resuming at step" in outputs[0] or "fold-2" in done
    assert [files_of(tmp_path / fold) for fold in done] == before
    for fold in FOLDS:
        assert weights(tmp_path / fold) == weights(crossvalidated / fold)
        assert losses(tmp_path / fold) == losses(crossvalidated / fold)
    assert result(tmp_path) == result(crossvalidated)


def test_at_the_other_zero_stages_the_papers_head_learns_the_same(authors, bright, tmp_path):
    for num_ranks, stage in ((1, 0), (2, 3)):
        zero = f"--train.deepspeed=configs/deepspeed/zero{stage}.json"
        given = arguments(authors, bright, tmp_path / f"{stage}", "--num_folds=2", "--train.epochs=4", zero)
        codes, outputs = wait_for_ranks(start_ranks([given] * num_ranks, CROSSVAL))
        assert codes == [0] * num_ranks, outputs
    before = load_file(authors / "model.safetensors")
    for fold in FOLDS[:2]:
        zero0, zero3 = tmp_path / "0" / fold, tmp_path / "3" / fold
        assert losses(zero3) == pytest.approx(losses(zero0), rel=3e-3)
        assert has_mlp_head(load_student(str(zero3 / "student")))
        learned = [load_file(output / "student" / "model.safetensors") for output in (zero0, zero3)]
        for name, weight in before.items():
            one, other = (of_stage[name] - weight for of_stage in learned)
            # A key's bias has no gradient but what bf16 rounds; of all else the moves differ by a hundredth.
            assert (one - other).abs().mean() < 0.2 * one.abs().mean(), name
        assert read_predictions(zero3 / "predictions.csv") == pytest.approx(
            read_predictions(zero0 / "predictions.csv"), abs=3e-3
        )


def test_a_slurm_job_that_is_stopped_is_requeued_and_ends_as_if_it_had_not_been(
    slurm, crossvalidated, beginner, bright, tmp_path
):
    job = slurm.submit(
        *("--nodes=2", f"--output={tmp_path}/job.log"),
        f"--export=ALL,MASTER_ADDR=127.0.0.1,LOG_FOLDER={tmp_path}",
        *("slurm/train.sbatch", CROSSVAL, *folds(beginner, bright, tmp_path / "run")),
        folder=ROOT,
    )
    wait_for_step(tmp_path / "run" / "fold-1", 2, [])
    slurm.signal(job, "USR1")
    slurm.restart(job, 1)
    fields = slurm.wait(job)
    log = (tmp_path / "job.log").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log
    assert "train.sbatch: stopped; back into the queue" in log
    assert "mean ± std" in (tmp_path / f"xmodal-train-{job}-0.log").read_text()
    for fold in FOLDS:
        assert weights(tmp_path / "run" / fold) == weights(crossvalidated / fold)
    assert result(tmp_path / "run") == result(crossvalidated)


def test_given_divisions_keep_the_student_that_is_best_in_validation(beginner, bright, tmp_path, capsys):
    given = arguments(beginner, bright, tmp_path, "--train.epochs=4")
    done = launch("torchrun", given, "launch/finetune_fi.py")
    assert done.returncode == 0, done.stdout
    assert "split-1: groups of duplicates across its parts, as given: " in done.stdout
    found = result(tmp_path)
    assert [(one["name"], one["train"], one["val"], one["test"]) for one in found["divisions"]] == [
        ("split-1", 24, 6, 9),
        ("split-2", 24, 6, 9),
    ]
    for one in found["divisions"]:
        run = tmp_path / one["name"]
        tested = [row["path"] for row in rows(bright.parent / f"test-{one['name'][-1]}.csv")]
        predicted = [row["path"] for row in rows(tmp_path / one["predictions"])]
        assert sorted(predicted) == sorted(set(tested) - {"damaged-d.png"})
        validations = [line for line in read_metrics(run) if line["kind"] == "validation"]
        assert len(validations) == 4
        best = max(validations, key=lambda line: (line["polarity_agreement"], line["step"]))
        provenance = json.loads((run / "student" / "provenance.json").read_text())
        assert (provenance["steps"], provenance["validation"]) == (best["step"], best)
        assert json.loads((run / "config.json").read_text())["loss"]["neutral"] == "kept"
    assert found["mean"]["accuracy"] == pytest.approx(
        np.mean([one["metrics"]["accuracy"] for one in found["divisions"]])
    )
    # Tables that have changed by now are told, and not given the results of the old ones.
    table = bright.parent / "test-2.csv"
    before = table.read_text()
    try:
        table.write_text("\n".join(before.splitlines()[:-1]) + "\n")
        assert_told(["finetune-fi", *given], capsys, "its divisions are not those of bright any more")
    finally:
        table.write_text(before)


def assert_told(given: list[str], capsys: pytest.CaptureFixture[str], complaint: str) -> None:
    assert cli.main(given) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert complaint in first
    assert second.strip()


@pytest.mark.parametrize("verb", ["crossval", "finetune-fi"])
def test_pictures_that_cannot_be_decoded_are_told_and_looked_at_anew_by_the_next_run(
    verb, beginner, bright, tmp_path, capsys
):
    """A clone without `git lfs pull` has a few lines of text in each picture's place."""
    shutil.copytree(bright.parent, tmp_path / "clone")
    clone = tmp_path / "clone" / "bright.yaml"
    clone.write_text(bright.read_text().replace(str(bright.parent), str(clone.parent)))
    judged = load_benchmark(str(clone))
    for path in judged.paths:
        (clone.parent / path).write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    given = [verb, *arguments(beginner, clone, tmp_path / "run")]
    assert_told(given, capsys, "bright: none of its pictures can be decoded")
    for path in judged.subset(np.flatnonzero(judged.scores < 0)).paths:
        shutil.copy(bright.parent / path, clone.parent)
    assert_told(given, capsys, "positive picture")
    assert not list((tmp_path / "run").glob("pictures-*"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--train.epochs=5", "train.epochs: this run was begun with 4, not 5"),
        ("--num_folds=4", "num_folds: this run was begun with 3, not 4"),
    ],
)
def test_a_changed_setting_in_the_same_folder_is_told(crossvalidated, beginner, bright, capsys, change, complaint):
    assert_told(["crossval", *folds(beginner, bright, crossvalidated, change)], capsys, complaint)


def test_a_second_run_in_the_same_folder_is_told(beginner, bright, tmp_path, capsys):
    program = f"import fcntl; lock = open('{tmp_path}/.lock', 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert_told(["crossval", *folds(beginner, bright, tmp_path)], capsys, "another run is at it")
        other.communicate(b"\n")
    assert os.listdir(tmp_path) == [".lock"]


def test_another_student_in_the_same_folder_is_told_and_not_given_the_results_of_the_first(
    crossvalidated, beginner, bright, capsys
):
    given = ["crossval", *folds(beginner, bright, crossvalidated)]
    file = beginner / "model.safetensors"
    before = file.read_bytes()
    try:
        save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
        assert_told(given, capsys, "is another student, by its weights")
    finally:
        file.write_bytes(before)
    assert cli.main(given) == 0


@pytest.mark.parametrize(
    ("verb", "given", "complaint"),
    [
        ("crossval", ["-m", "STUDENT"], "benchmark: not given"),
        ("crossval", ["-m", "STUDENT", "-b", "5agre"], "5agre: no such benchmark"),
        ("crossval", ["-m", "vit_b32", "-b", "BRIGHT"], "vit_b32: no such folder"),
        ("crossval", ["-m", "STUDENT", "-b", "BRIGHT", "--train.view", "v"], "train.view: 'v' is not to be given"),
        ("crossval", ["-m", "STUDENT", "-b", "BRIGHT", "--train.select", "kl"], "needs a part to validate on"),
        ("crossval", ["-m", "STUDENT", "-b", "BRIGHT", "--train.epoch", "3"], "train.epoch: no such setting"),
        ("crossval", ["-m", "STUDENT", "-b", "LOST"], "no such picture (1 of 2 are missing)"),
        ("crossval", ["-m", "STUDENT", "-b", "BRIGHT", "--output=s3://b/a"], "output: 's3://b/a' must be a folder"),
        ("finetune-fi", ["-m", "STUDENT", "-b", "LOST"], "splits: there are none"),
        (
            "finetune-fi",
            ["-m", "STUDENT", "-b", "BRIGHT", "--train.checkpoint_every_epochs", "0"],
            "train.select: 'polarity_agreement' needs checkpoint_every_epochs",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_begins(verb, given, complaint, beginner, bright, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(f"path,class\n{bright.parent}/0-0a.png,0\nlost.png,1\n")
    lost = tmp_path / "lost.yaml"
    lost.write_text(
        f"name: lost\nimages: {tmp_path}\nlabels: {tmp_path}/table.csv\nclasses: {{0: negative, 1: positive}}\n"
    )
    known = {"STUDENT": str(beginner), "BRIGHT": str(bright), "LOST": str(lost)}
    output = tmp_path / "output"
    assert_told([verb, f"--output={output}", *(known.get(one, one) for one in given)], capsys, complaint)
    assert not output.exists()
