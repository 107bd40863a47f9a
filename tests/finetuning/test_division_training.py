"""What the trainer is given: the paper's settings, and a benchmark's pictures as shards and views."""

import json
from pathlib import Path

import made_pictures
import numpy as np
import pytest
import torch

from shards.augment import eval_pixels
from shards.storage import LocalStorage
from shards.stream import EvalStream, StreamConfig
from shards.view import open_view
from xmodal.benchmarks import Benchmark, load_benchmark
from xmodal.config import load_config
from xmodal.curation.forgotten import refuse_forgotten
from xmodal.finetuning.config import RECIPES, CrossvalConfig, FinetuneConfig, FinetuneFiConfig
from xmodal.finetuning.pictures import read_pictures, write_division_view, write_pictures
from xmodal.finetuning.run import division_config
from xmodal.students import create_student, load_student
from xmodal.training.engine import resolve_deepspeed_config


def recipe(name: str, model: Path, *more: str) -> FinetuneConfig:
    config_class = {"five_fold": CrossvalConfig, "given_splits": FinetuneFiConfig}[name]
    given = [f"--config={RECIPES / name}.yaml", f"--model={model}", "--benchmark=b", *more]
    return load_config(config_class, given, command="", description="")


def written_benchmark(folder: Path, table: str, settings: str) -> Benchmark:
    (folder / "table.csv").write_text(table)
    (folder / "made.yaml").write_text(f"name: made\nimages: {folder}\nlabels: {folder}/table.csv\n{settings}\n")
    return load_benchmark(str(folder / "made.yaml"))


@pytest.fixture
def of_three_classes(tmp_path: Path) -> Benchmark:
    """One of its pictures is a GIF, which no shard holds as it is; one cannot be decoded."""
    (tmp_path / "0.png").write_bytes(made_pictures.png(seed=0))
    (tmp_path / "1.gif").write_bytes(made_pictures.encode(made_pictures.pixels(seed=1).quantize(16), "GIF"))
    (tmp_path / "2.jpg").write_bytes(made_pictures.jpeg(seed=2))
    (tmp_path / "3.jpg").write_bytes(made_pictures.GARBAGE)
    table = "path,class\n0.png,sad\n1.gif,calm\n2.jpg,glad\n3.jpg,sad\n"
    return written_benchmark(tmp_path, table, "classes: {sad: negative, calm: neutral, glad: positive}")


@pytest.mark.parametrize(("name", "epochs", "neutral", "select"), [
    ("five_fold", 12, "masked", "last"), ("given_splits", 5, "kept", "polarity_agreement"),
])  # fmt: skip
def test_the_recipes_have_the_papers_settings(name, epochs, neutral, select, beginner):
    train = recipe(name, beginner).train
    assert (train.epochs, train.frozen_epochs, train.global_batch_size, train.select) == (epochs, 0, 32, select)
    assert (train.loss.kind, train.loss.label_smoothing, train.loss.class_weights) == ("hard", 0, "none")
    assert train.loss.neutral == neutral
    optimizer = train.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay, optimizer.max_grad_norm) == ("radam", 1e-4, 0, 0)
    assert (optimizer.warmup_share, optimizer.final_lr_share, optimizer.ema_decay) == (0, 1, 0)
    augment = train.augment
    assert (augment.min_crop_area, augment.max_crop_aspect, augment.flip) == (1, 1, False)
    assert not any((augment.max_shift, augment.max_rotation, augment.color_jitter, augment.rand_augment))
    for ranks in (1, 2, 4, 8):
        assert train.stream.num_lanes % ranks == 0
        resolve_deepspeed_config(
            train.deepspeed, global_batch_size=32, micro_batches=1, world_size=ranks, max_grad_norm=0
        )


def test_the_student_says_what_head_it_has_and_what_pictures_it_takes(authors, beginner, bright, tmp_path):
    judged = load_benchmark(str(bright))
    cut = division_config(recipe("five_fold", authors), judged, tmp_path)
    assert (cut.student.head, cut.student.model, cut.augment.squash) == ("mlp", f"local-dir:{authors}", False)
    squashed = division_config(recipe("five_fold", beginner), judged, tmp_path)
    assert (squashed.student.head, squashed.augment.squash) == ("linear", True)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(create_student(cut.student).eval()(pictures), load_student(str(authors))(pictures))
    # With random crops, it is the config that says how pictures are cut.
    varied = recipe("five_fold", beginner, "--train.augment.min_crop_area=0.5")
    assert not division_config(varied, judged, tmp_path).augment.squash


def test_neutral_is_left_out_of_the_loss_unless_people_could_say_it(beginner, bright, of_three_classes, tmp_path):
    config = recipe("five_fold", beginner)
    assert division_config(config, load_benchmark(str(bright)), tmp_path).loss.neutral == "masked"
    assert division_config(config, of_three_classes, tmp_path).loss.neutral == "kept"


def test_the_view_of_a_division_has_the_pictures_of_its_parts_with_what_people_said(of_three_classes, tmp_path):
    dataset = tmp_path / "dataset"
    for _ in range(2):  # done again, it changes nothing
        write_pictures(of_three_classes, dataset)
    pictures = read_pictures(dataset)
    assert pictures["place"].to_pylist() == [0, 1, 2]
    [failure] = [json.loads(line) for line in LocalStorage(dataset).read("000000.failures.jsonl").splitlines()]
    assert failure == {"path": "3.jpg", "reason": "not_an_image"}
    write_division_view(
        tmp_path / "view", of_three_classes, dataset, pictures, np.array(["train", "test", "train", ""], dtype=object)
    )
    view = open_view(str(tmp_path / "view"))
    refuse_forgotten(view)
    assert view.split("train").rows["target"].to_pylist() == [[1, 0, 0], [0, 0, 1]]
    assert view.description["counts"]["splits"] == {"train": 2, "val": 0, "test": 1}
    stream = EvalStream(
        view, split="test", config=StreamConfig(num_workers=0), size=32, crop_share=1.0, squash=True, batch_size=1
    )
    [batch] = list(stream)
    assert batch.targets.tolist() == [[0, 1, 0]]
    expected = eval_pixels((tmp_path / "1.gif").read_bytes(), 32, squash=True)
    assert np.array_equal(batch.pixels[0].numpy(), expected)


def test_of_scores_the_sign_is_the_class(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(made_pictures.png(seed=number))
    graded = written_benchmark(tmp_path, "path,score\n0.png,0.2\n1.png,-3\n2.png,0\n", "")
    judged = graded.subset(np.flatnonzero(graded.scores != 0))
    assert judged.paths == ["0.png", "1.png"]
    write_pictures(judged, tmp_path / "dataset")
    pictures = read_pictures(tmp_path / "dataset")
    write_division_view(
        tmp_path / "view", judged, tmp_path / "dataset", pictures, np.array(["train"] * 2, dtype=object)
    )
    assert open_view(str(tmp_path / "view")).table["target"].to_pylist() == [[0, 0, 1], [1, 0, 0]]
