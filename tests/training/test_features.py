"""A head that learns from features which the frozen backbone made once, against one that is given all pictures anew."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from launchers import launch, losses, settings, start_ranks, train_in_turn, wait_for_ranks
from test_reference_run import MODEL_ARGS, float32_config

from shards.batches import Normaliser
from shards.errors import UserError
from shards.storage import LocalStorage
from shards.stream import EvalStream, StreamConfig
from shards.view import open_view
from xmodal.students import StudentConfig, create_student, input_spec, load_student
from xmodal.training.config import TrainConfig
from xmodal.training.engine import frozen_backbone
from xmodal.training.feature_store import FeatureStore, backbone_fingerprint, picture_ids
from xmodal.training.features import Features, read_features, require_linear_classifier
from xmodal.training.metrics_file import read_metrics
from xmodal.training.preparation import prepare
from xmodal.training.ranks import Ranks

RECIPE = (
    "--epochs=4", "--frozen_epochs=3", "--augment.min_crop_area=1", "--augment.max_crop_aspect=1",
    "--augment.flip=false", "--student.eval_crop_share=1", "--optimizer.lr=1e-2", "--loss.class_weights=balanced",
    "--student.head=mlp", f"--student.model_args={json.dumps(MODEL_ARGS)}", "--optimizer.ema_decay=0.9",
    "--keep_checkpoints=1",
)  # fmt: skip


def test_two_ranks_learn_from_kept_features_what_one_learns_from_the_pictures(small_view, tmp_path):
    alone = settings(small_view, tmp_path / "pictures", *RECIPE, f"--deepspeed={float32_config(tmp_path, 0)}")
    kept = "--keep_features=true", f"--feature_folder={tmp_path}/kept", "--micro_batch_size=4"
    zero3 = f"--deepspeed={float32_config(tmp_path, 3)}"
    two = settings(small_view, tmp_path / "features", *RECIPE, *kept, zero3)
    done = launch("python", alone)
    assert done.returncode == 0, done.stdout
    # Of 9 steps an epoch, broken off amid the second one.
    train_in_turn(2, [[*two, "--max_steps=13"], two], tmp_path)
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


class Engine(torch.nn.Module):
    """As much of DeepSpeed's as a forward pass takes."""

    device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.module(pixels)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_another_run_has_looked_at_is_not_looked_at_again(small_view, tmp_path, one_rank):
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=MODEL_ARGS))
    model.bfloat16()
    view, spec = open_view(str(small_view)), input_spec(model)
    ids = picture_ids(view.split("train").rows)
    assert len(set(ids)) == 158
    looked_at: list[np.ndarray] = []

    def stream_of(rows: np.ndarray) -> EvalStream:
        looked_at.append(rows)
        config = StreamConfig(num_lanes=8, num_workers=0)
        return EvalStream(view, split="train", config=config, size=32, batch_size=16, rows=rows)

    def read(count: int, store: FeatureStore | None, goes_on: Callable[[], bool] = lambda: True) -> Features | None:
        return read_features(
            Engine(model),
            stream_of,
            ids[:count],
            flip=True,
            to_pixels=lambda batch: Normaliser(spec.mean, spec.std)(batch.pixels).bfloat16(),
            goes_on=goes_on,
            store=store,
        )

    store = FeatureStore(LocalStorage(tmp_path), "some")
    alone, first, second, third = read(158, None), read(100, store), read(158, store), read(120, store)
    assert [rows.tolist() for rows in looked_at] == [list(range(158)), list(range(100)), list(range(100, 158))]
    assert alone.values.shape == (2, 158, 32)
    assert not torch.equal(alone.values[0], alone.values[1])
    torch.testing.assert_close(second.values, alone.values)
    assert torch.equal(first.values, second.values[:, :100])
    assert torch.equal(third.values, second.values[:, :120])
    # What was looked at when a run is asked to stop is not lost either.
    broken_off, answers = FeatureStore(LocalStorage(tmp_path), "broken-off"), iter([True, True, False])
    assert read(158, broken_off, lambda: next(answers)) is None
    torch.testing.assert_close(read(158, broken_off).values, alone.values)
    assert looked_at[-1].tolist() == list(range(32, 158))
    (tmp_path / "some.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"some\.safetensors: is damaged"):
        store.find(ids)


class SmallPieces(LocalStorage):
    """Takes no more than 1 kB in one piece, as S3 no more than 5 GB."""

    def replace(self, name: str, content: bytes) -> None:
        if len(content) > 1000:
            raise OSError("EntityTooLarge")
        super().replace(name, content)


def test_a_store_may_hold_more_than_its_storage_takes_in_one_piece(tmp_path):
    store = FeatureStore(SmallPieces(tmp_path), "some")
    ids, values = [bytes([number]) * 32 for number in range(8)], torch.randn(2, 8, 100)
    store.add(ids[:5], values[:, :5])
    store.add(ids[5:], values[:, 5:])
    places, found = store.find(ids)
    assert places == list(range(8))
    assert torch.equal(found, values)
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]
    with pytest.raises(UserError, match="gone: cannot be written to"):
        FeatureStore(LocalStorage(tmp_path / "gone"), "some").add(ids, values)


def test_a_feature_store_that_is_of_no_use_ends_all_ranks_and_the_first_tells_it(small_view, tmp_path):
    kept = "--frozen_epochs=1", "--keep_features=true", f"--feature_folder={tmp_path}/kept"
    alone = launch("python", settings(small_view, tmp_path / "alone", *kept, "--max_steps=1"))
    assert alone.returncode == 0, alone.stdout
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(b"{}")

    def told_by_two_ranks(*more: str) -> list[str]:
        codes, outputs = wait_for_ranks(start_ranks([settings(small_view, tmp_path / "run", *kept, *more)] * 2))
        assert codes == [2, 2], outputs
        assert "Traceback" not in outputs[0]
        return outputs

    first, second = told_by_two_ranks()
    assert f"xmodal: {file}: is damaged: " in first
    assert "xmodal: " not in second
    first, second = told_by_two_ranks(f"--feature_folder={file}/below")
    assert f"xmodal: {file}/below: cannot be a folder: " in first
    assert "xmodal: " not in second


def test_a_run_that_is_asked_to_stop_does_not_look_at_all_pictures_first(small_view, tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    arguments = settings(small_view, run, "--frozen_epochs=1", "--keep_features=true", f"--feature_folder={kept}")
    run.mkdir()
    (run / "stop").touch()
    done = launch("python", arguments)
    assert done.returncode == 75, done.stdout
    assert "stopped at step 0 of 9, as asked" in done.stdout
    assert not (run / "stop").exists()
    assert list(kept.iterdir()) == []
    done = launch("python", arguments)
    assert done.returncode == 0, done.stdout


def test_a_backbone_is_known_by_its_weights_and_its_input_and_not_by_its_head():
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=MODEL_ARGS))
    spec = input_spec(model)
    before = backbone_fingerprint(model, spec)
    torch.nn.init.normal_(model.get_classifier().weight)
    assert backbone_fingerprint(model, spec) == before
    assert backbone_fingerprint(model, replace(spec, crop_share=0.5)) != before
    model.get_parameter("cls_token").data += 1e-3
    assert backbone_fingerprint(model, spec) != before


def test_a_student_whose_classifier_is_no_linear_layer_is_refused():
    require_linear_classifier(create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False)), "vit")
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    with pytest.raises(UserError, match="keep_features: the classifier of deit"):
        require_linear_classifier(model, "deit")


@pytest.mark.parametrize("keep_features", [False, True])
def test_dropout_that_frozen_epochs_leave_out_is_told(small_view, tmp_path, caplog, keep_features):
    view = open_view(str(small_view))
    config = TrainConfig(
        view=str(small_view),
        output=str(tmp_path),
        student=StudentConfig(
            model="vit_tiny_patch16_224", pretrained=False, model_args={**MODEL_ARGS, "drop_rate": 0.5}
        ),
        stream=StreamConfig(num_lanes=8, num_workers=0),
        global_batch_size=16,
        frozen_epochs=2,
        keep_features=keep_features,
    )
    alone = Ranks(rank=0, local_rank=0, world_size=1)
    model = prepare(config, view, alone).model.train()
    assert caplog.messages == ["drop_rate of student.model_args has no effect in the 2 frozen epochs"]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model(pixels), model(pixels))
    with frozen_backbone(model):
        assert torch.equal(model(pixels), model(pixels))
    caplog.clear()
    prepare(replace(config, frozen_epochs=0, keep_features=False), view, alone)
    prepare(replace(config, student=replace(config.student, model_args=MODEL_ARGS)), view, alone)
    assert not caplog.messages
