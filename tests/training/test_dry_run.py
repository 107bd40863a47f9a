"""`--dry-run` through the launchers: says everything, leaves nothing."""

import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
from launchers import TINY_MODEL_ARGS, launch, settings
from training_view import make_view

from shards.errors import UserError
from shards.view import open_view, write_view
from xmodal.students import StudentConfig, create_student
from xmodal.training.config import LossConfig, TrainConfig
from xmodal.training.costs import num_parameters, rank_memory
from xmodal.training.dry_run import dry_run
from xmodal.training.pinned_config import pin_config
from xmodal.training.preparation import prepare
from xmodal.training.ranks import Ranks

NUM_PARAMETERS = num_parameters(
    create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS))
)


@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("deepspeed", 2)])
def test_a_dry_run_says_what_a_run_would_do_and_leaves_nothing(small_view, tmp_path, launcher, ranks):
    output = tmp_path / "run"
    more = "--epochs=3", "--frozen_epochs=1", "--micro_batch_size=4", "--optimizer.ema_decay=0.9", "--peak_tflops=0.5"
    done = launch(launcher, settings(small_view, output, *more, "--dry-run"))
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []
    said = done.stdout
    assert "  global_batch_size: 16\n" in said
    assert f"  gradient_accumulation_steps: {4 // ranks}\n" in said
    assert f"vit_tiny_patch16_224, {NUM_PARAMETERS:,} parameters, 32 by 32 pixels" in said
    assert "27, 9 an epoch of 158 samples" in said
    assert re.search(r"MFU [0-9.]+% of 0.5 TFLOP/s", said)
    assert re.search(r"all steps +\d+:\d\d:\d\d ", said)
    table = {
        int(stage): [float(cell) for cell in re.findall(r"\d+\.\d\d", line)]
        for stage, line in re.findall(r"^ZeRO (\d)(.*)$", said, re.MULTILINE)
    }
    assert sorted(table) == [0, 1, 2, 3]
    assert len(table[0]) == (3 if ranks == 1 else 4)
    of_bucket = rank_memory(
        NUM_PARAMETERS, stage=1, world_size=1, has_average=True, activations=0, bucket_elements=50_000_000
    ).total  # fmt: skip
    assert table[1][0] == pytest.approx(of_bucket / 2**30, abs=0.02)


def test_a_dry_run_refuses_what_a_run_would(small_view, tmp_path):
    with pytest.raises(UserError, match="no-view"):
        dry_run(TrainConfig(view=str(tmp_path / "no-view"), output=str(tmp_path / "run")), print)
    (tmp_path / "run" / "checkpoints" / "step-00000009").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000009" / "commit.json").write_text("{}")
    begun = TrainConfig(view=str(small_view), output=str(tmp_path / "run"))
    pin_config(tmp_path / "run", begun)
    with pytest.raises(UserError, match="this run was begun with 10, not 3"):
        dry_run(replace(begun, epochs=3), print)


def test_no_step_can_be_selected_where_there_is_nothing_to_validate_on(tmp_path):
    view = make_view(tmp_path, num_samples=7)
    config = TrainConfig(view=str(view), output=str(tmp_path / "run"), select="kl")
    with pytest.raises(UserError, match="split 'val' has no samples"):
        prepare(config, open_view(str(view)), Ranks(rank=0, local_rank=0, world_size=1))


def test_a_step_that_cannot_fit_is_told_after_the_plan_and_not_tried(small_view, tmp_path):
    # Terabytes of activations: a million patches a picture, and an MLP of 64 times the width in each of 16 blocks.
    large = TINY_MODEL_ARGS | {"img_size": 8192, "mlp_ratio": 64, "depth": 16}
    done = launch(
        "python", settings(small_view, tmp_path / "run", f"--student.model_args={json.dumps(large)}", "--dry-run")
    )
    assert done.returncode == 2, done.stdout
    assert re.search(r"^ZeRO 3 ", done.stdout, re.MULTILINE)
    assert re.search(r"xmodal: a step takes about \d+\.\d GiB, and this machine has ", done.stdout)
    assert "lower micro_batch_size" in done.stdout
    assert "Traceback" not in done.stdout
    assert "all steps" not in done.stdout


def test_neutral_cannot_be_masked_where_validation_has_samples_that_are_neutral_and_no_more(small_view, tmp_path):
    view = open_view(str(small_view))
    targets = [
        [0.0, 1.0, 0.0] if split == "val" and target[1] > 0.5 else target
        for split, target in zip(view.table["split"].to_pylist(), view.table["target"].to_pylist(), strict=True)
    ]
    place = view.table.column_names.index("target")
    table = view.table.set_column(place, "target", pa.array(targets, view.table["target"].type))
    folders = [storage.url for storage in view.datasets]
    write_view(str(tmp_path), table, view.shards, datasets=folders, description={"counts": view.description["counts"]})
    student = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS)
    config = TrainConfig(view=str(tmp_path), output="out", student=student, loss=LossConfig(neutral="masked"))
    with pytest.raises(UserError, match=r"loss\.neutral: masked, but \d of \d+ samples are neutral and no more"):
        prepare(config, open_view(config.view), Ranks(rank=0, local_rank=0, world_size=1))
