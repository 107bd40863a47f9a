"""A head that learns from features which the frozen backbone made once, against one that is given all pictures anew."""

import json

import pytest
import timm
import torch
from launchers import launch, losses, settings
from test_reference_run import MODEL_ARGS, float32_config

from shards.errors import UserError
from xmodal.students import StudentConfig, create_student, load_student
from xmodal.training.features import Features, require_linear_classifier
from xmodal.training.metrics_file import read_metrics

RECIPE = (
    "--epochs=4", "--frozen_epochs=3", "--augment.min_crop_area=1", "--augment.max_crop_aspect=1",
    "--augment.flip=false", "--student.eval_crop_share=1", "--optimizer.lr=1e-2", "--loss.class_weights=balanced",
    "--student.head=mlp", f"--student.model_args={json.dumps(MODEL_ARGS)}", "--optimizer.ema_decay=0.9",
    "--keep_checkpoints=1",
)  # fmt: skip


def test_two_ranks_learn_from_kept_features_what_one_learns_from_the_pictures(small_view, tmp_path):
    alone = settings(small_view, tmp_path / "pictures", *RECIPE, f"--deepspeed={float32_config(tmp_path, 0)}")
    kept = "--keep_features=true", "--micro_batch_size=4", f"--deepspeed={float32_config(tmp_path, 3)}"
    two = settings(small_view, tmp_path / "features", *RECIPE, *kept)
    # Of 9 steps an epoch, broken off amid the second one.
    for launcher, arguments in (("python", alone), ("deepspeed", [*two, "--max_steps=13"]), ("deepspeed", two)):
        done = launch(launcher, arguments)
        assert done.returncode == 0, done.stdout
    assert losses(tmp_path / "features") == pytest.approx(losses(tmp_path / "pictures"), rel=1e-4)
    validated = [
        {line["step"]: line["kl"] for line in read_metrics(tmp_path / name) if line["kind"] == "validation"}
        for name in ("features", "pictures")
    ]
    validated[0].pop(13)
    assert len(validated[1]) == 4
    assert validated[0] == pytest.approx(validated[1], rel=1e-4)
    weights = [load_student(str(tmp_path / name / "student")).state_dict() for name in ("features", "pictures")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_picture_or_its_mirror_image_is_drawn_for_each_row():
    values = torch.stack([torch.arange(6.0), -torch.arange(6.0)])[:, :, None]
    features = Features(values=values, known=torch.ones(6, dtype=torch.bool))
    rows = torch.tensor([5, 1, 3])
    torch.manual_seed(0)
    drawn = torch.stack([features.draw(rows)[:, 0] for _ in range(100)])
    assert torch.equal(drawn.abs(), rows.expand(100, 3).float())
    assert all(30 < (drawn[:, place] < 0).sum() < 70 for place in range(3))
    alone = Features(values=values[:1], known=features.known)
    assert alone.draw(rows)[:, 0].tolist() == [5, 1, 3]


def test_a_student_whose_classifier_is_no_linear_layer_is_refused():
    require_linear_classifier(create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False)), "vit")
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    with pytest.raises(UserError, match="keep_features: the classifier of deit"):
        require_linear_classifier(model, "deit")
