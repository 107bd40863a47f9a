"""`--dry-run` through the launchers: says everything, leaves nothing."""

import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
from launchers import TINY_MODEL_ARGS, launch, settings, start_ranks, wait_for_ranks
from training_view import make_view

from shards.errors import UserError
from shards.view import open_view, write_view
from xmodal.students import StudentConfig, create_student
from xmodal.training.config import LossConfig, TrainConfig
from xmodal.training.costs import num_parameters, rank_memory
from xmodal.training.dry_run import dry_run, require_memory
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
    (tmp_path / "run" / "student").mkdir()
    (tmp_path / "run" / "student" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, so it is no student"):
        dry_run(begun, print)
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        dry_run(replace(begun, output=str(tmp_path / "run" / "student" / "thesis.tex")), print)


def test_no_step_can_be_selected_where_there_is_nothing_to_validate_on(tmp_path):
    view = make_view(tmp_path, num_samples=7)
    config = TrainConfig(view=str(view), output=str(tmp_path / "run"), select="kl")
    with pytest.raises(UserError, match="split 'val' has no samples"):
        prepare(config, open_view(str(view)), Ranks(rank=0, local_rank=0, world_size=1))


def test_a_step_that_cannot_fit_is_told_after_the_plan_and_not_tried(small_view, tmp_path):
    # Terabytes of activations: a million patches a picture, and an MLP of 64 times the width in each of 16 blocks.
    large = TINY_MODEL_ARGS | {"img_size": 8192, "mlp_ratio": 64, "depth": 16}
    arguments = settings(small_view, tmp_path / "run", f"--student.model_args={json.dumps(large)}", "--dry-run")
    codes, (first, second) = wait_for_ranks(start_ranks([arguments] * 2))
    assert codes == [2, 2], first + second
    assert re.search(r"^ZeRO 3 ", first, re.MULTILINE)
    assert re.search(r"xmodal: a step takes about \d+\.\d GiB of each of 2 ranks, and this machine has ", first)
    assert "lower micro_batch_size" in first
    assert "all steps" not in first
    assert "Traceback" not in first + second
    assert "xmodal: " not in second


@pytest.mark.parametrize(("num_on_host", "of_ranks"), [(1, ""), (2, " of each of 2 ranks")])
def test_all_ranks_of_a_machine_share_its_memory(num_on_host, of_ranks):
    require_memory(3.0 * 2**30, num_on_host=num_on_host, limit=3 * num_on_host * 2**30)
    complaint = f"a step takes about 3.0 GiB{of_ranks}, and this machine has {3 * num_on_host - 1}.0 GiB"
    with pytest.raises(UserError, match=re.escape(complaint)):
        require_memory(3.0 * 2**30, num_on_host=num_on_host, limit=(3 * num_on_host - 1) * 2**30)


def test_ranks_of_a_dry_run_that_disagree_say_where(small_view, tmp_path):
    arguments = [*settings(small_view, tmp_path / "run"), "--dry-run"]
    codes, outputs = wait_for_ranks(start_ranks([arguments, [*arguments, "--optimizer.lr=0.1"]]))
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "the ranks do not agree: config.optimizer.lr is 0.001 on rank 0 and 0.1 on rank 1" in output
        assert "Traceback" not in output


def test_a_rank_of_a_dry_run_that_is_lost_is_named(small_view, tmp_path):
    large = TINY_MODEL_ARGS | {"img_size": 256, "embed_dim": 256, "depth": 8}  # seconds a step
    more = (f"--student.model_args={json.dumps(large)}", "--peer_timeout=15", "--dry-run")
    ranks = start_ranks([settings(small_view, tmp_path / "run", *more)] * 2)
    try:
        assert ranks[0].stdout
        assert any("One step is being done" in line for line in ranks[0].stdout)
        ranks[1].kill()
        output, _ = ranks[0].communicate(timeout=200)
    finally:
        wait_for_ranks(ranks)
    assert ranks[0].returncode == 2, output
    assert "another rank has ended or does not answer, so this one cannot go on: rank 1 on " in output
    assert "Traceback" not in output


def test_a_config_that_leaves_sizes_to_others_is_tried_as_it_is_trained(small_view, tmp_path):
    zero = {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": "auto"}
    file = tmp_path / "zero2.json"
    file.write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": zero}))
    done = launch("python", settings(small_view, tmp_path / "run", f"--deepspeed={file}", "--dry-run"))
    assert done.returncode == 0, done.stdout
    assert "auto" not in done.stdout.partition("DeepSpeed, from ")[2]


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
