"""The folds of benchmarks/mvsa.py keep apart what is alike, and its steps are done once, from posts to predictions."""

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from curation_pictures import NEGATIVE, NEUTRAL, POSITIVE, photo_bytes, post_samples, write_dataset
from launchers import TINY_MODEL_ARGS
from safetensors.torch import load_file
from timm.models import save_for_hf

from shards.view import open_view
from xmodal.config import load_config
from xmodal.training.config import TrainConfig

SOFT_LABELS = (NEGATIVE, NEUTRAL, POSITIVE)
COPIES = {30: 0, 31: 7, 32: 11}
"""Pictures that are others, encoded anew; nobody judged the last one."""


@pytest.fixture
def mvsa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("mvsa")
    for name in ("mvsa", "mvsa_steps", "mvsa_judged"):
        del sys.modules[name]


@pytest.fixture
def bench(mvsa: Any, tmp_path: Path) -> Any:
    """33 posts, of which 32 were judged, and by the teacher just as by people."""
    data = tmp_path / "data"
    samples = []
    rows: list[tuple[object, ...]] = [("path", "image_class", "text_class")]
    for number in range(33):
        content = photo_bytes(COPIES.get(number, number), quality=70 if number in COPIES else 95)
        (sample,) = post_samples(str(number), SOFT_LABELS[number % 3], content)
        samples.append(sample)
        path = sample.fields["url"].removeprefix("https://example.org/")
        (data / path).parent.mkdir(parents=True)
        (data / path).write_bytes(content)
        if number < 32:
            rows.append((path, number % 3, 1))
    with (data / mvsa.LABELS).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    dataset = Path(write_dataset(tmp_path / "dataset", [samples[:20], samples[20:]]))
    judged = mvsa.judged_pictures(dataset, data / mvsa.LABELS)
    return mvsa.Bench(
        steps=mvsa.Steps(tmp_path / "run"), data=data, weights=data, datasets={mvsa.BOTH: dataset}, judged=judged
    )


def test_a_fold_has_its_share_of_all_classes_and_no_copy_in_another(bench):
    judged = bench.judged
    assert len(judged.paths) == 32
    assert sorted(np.bincount(judged.folds).tolist()) == [6, 6, 6, 7, 7]
    fold_of = dict(zip(judged.paths, judged.folds.tolist(), strict=True))
    for copy, original in COPIES.items():
        assert copy == 32 or fold_of[f"{copy}/0"] == fold_of[f"{original}/0"]
    for path, score, soft_label in zip(judged.paths, judged.scores, judged.teacher, strict=True):
        assert score == int(path.split("/")[0]) % 3 - 1
        assert soft_label.tolist() == list(SOFT_LABELS[score + 1])


def test_what_is_learned_from_is_no_picture_of_the_fold_nor_near_to_one_and_is_chosen_once(bench, capfd):
    fold = int(bench.judged.folds[bench.judged.paths.index("11/0")])
    view = bench._view(fold, bench._benchmark(fold), 0.0)
    learned = [int(key.split("-")[0]) for key in open_view(str(view)).table["key"].to_pylist()]
    of_fold = {int(path.split("/")[0]) for path in bench._paths(fold)}
    assert not of_fold & set(learned)
    assert 32 not in learned
    # Of copies elsewhere, one stays.
    assert sorted(COPIES.get(number, number) for number in learned) == sorted(set(range(30)) - of_fold)
    assert "curate" in capfd.readouterr().out
    assert bench._view(fold, bench._benchmark(fold), 0.0) == view
    assert not capfd.readouterr().out
    record = view.with_name(f"{view.name}.step.json")
    record.write_text(record.read_text().replace("0.95", "0.9"))
    with pytest.raises(SystemExit, match="was made with other settings"):
        bench._view(fold, bench._benchmark(fold), 0.0)
    assert json.loads(record.read_text())["seconds"] > 0


def test_figures_of_several_folds_are_of_their_predictions_together(mvsa, bench):
    judged = bench.judged
    predicted = np.where(judged.rows_of([0, 1, 2])[:, None], judged.teacher, np.nan)
    figures = mvsa.figures_of(judged, predicted, [0, 1])
    assert figures["n"] == (judged.scores[judged.rows_of([0, 1])] != 0).sum()
    assert figures["auc"] == figures["auc_mean_of_folds"] == figures["auc_by_teacher"] == 1
    assert figures["auc_low"] == 1
    assert set(mvsa.difference(judged, predicted, predicted).values()) == {0}


def config_of(contender: Any) -> TrainConfig:
    """What the trainer makes of a contender's settings."""
    steps = sys.modules["mvsa_steps"]
    given = {"view": "view", "output": "run", "student.model": contender.model, **steps.COMMON, **contender.settings}
    return load_config(TrainConfig, [steps._argument(one) for one in given.items()], command="", description="")


def test_every_contender_is_one_that_the_trainer_takes_and_fine_tuning_keeps_the_loss(mvsa):
    tuned = [one for one in mvsa.ABLATIONS if one.start]
    frozen = [one for one in (*mvsa.STUDENTS, *mvsa.ABLATIONS) if not one.start]
    assert len(tuned) == 2
    for config in map(config_of, frozen):
        assert (config.frozen_epochs, config.keep_features) == (config.epochs, True)
    for one in tuned:
        config = config_of(one)
        assert (config.frozen_epochs, config.keep_features) == (0, False)
        assert config.loss == config_of(one.start).loss


def test_a_student_learns_from_the_other_folds_and_says_what_it_sees_in_its_own(mvsa, bench, capfd):
    torch.manual_seed(0)
    published = timm.create_model("vit_tiny_patch16_224", **TINY_MODEL_ARGS)  # of a thousand classes
    save_for_hf(published, str(bench.weights / "tiny"), safe_serialization=True)
    small = {"global_batch_size": 8, "micro_batch_size": 8, "stream.num_workers": 0}
    # Above 0.75 the teacher was sure of all but the neutral ones.
    frozen = mvsa.Contender("tiny, frozen", "tiny", {**mvsa.FROZEN, **small, "epochs": 2, "frozen_epochs": 2}, 0.75)
    tuned = mvsa.Contender("tiny, fine-tuned", "tiny", {**mvsa.TUNED, **small, "epochs": 2}, 0.75, start=frozen)
    predicted = [bench.predictions(one, [0]) for one in (frozen, tuned)]
    fold = bench.judged.rows_of([0])
    for one in predicted:
        assert one[fold].sum(axis=1) == pytest.approx(1)
        assert np.isnan(one[~fold]).all()
    assert not np.allclose(predicted[0][fold], predicted[1][fold])

    made = bench.steps.folder / "fold_0"
    given, learned, gone_on = (
        load_file(folder / "model.safetensors")
        for folder in (bench.weights / "tiny", made / "tiny_frozen" / "student", made / "tiny_fine-tuned" / "student")
    )
    first_layer = "patch_embed.proj.weight"
    assert torch.equal(learned[first_layer], given[first_layer].bfloat16().float())  # what is frozen has no more digits
    assert not torch.equal(gone_on[first_layer], learned[first_layer])
    assert list((bench.steps.folder / "features").iterdir())
    config = json.loads((made / "tiny_fine-tuned" / "config.json").read_text())
    assert config["student"]["model"] == f"local-dir:{made}/tiny_frozen/student"
    # A third of the posts is left out, so there are half as many epochs more.
    num_all, num_sure = (
        open_view(str(made / f"view_transformer_and_lexicon_{name}")).split("train").rows.num_rows
        for name in ("0", "0.75")
    )
    assert num_sure < num_all
    assert config["epochs"] == round(2 * num_all / num_sure)

    steps = [line.split()[-2:] for line in capfd.readouterr().out.splitlines()]
    assert [verb for verb, _ in steps] == ["curate", "curate", "train", "evaluate", "train", "evaluate"]
    assert np.array_equal(bench.predictions(tuned, [0]), predicted[1], equal_nan=True)
    assert not capfd.readouterr().out
