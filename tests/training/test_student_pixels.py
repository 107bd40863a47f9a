"""The pictures that a run trains and validates on are those that its student is evaluated on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launchers import TINY_MODEL_ARGS

from shards.augment import AugmentConfig, Interpolation, eval_pixels
from shards.reader import SampleReader
from shards.stream import StreamConfig
from shards.view import open_view
from xmodal.students import StudentConfig, create_student, export_student, scale_without_antialiasing
from xmodal.training.config import TrainConfig
from xmodal.training.pictures import Pictures
from xmodal.training.preparation import prepare
from xmodal.training.ranks import Ranks

RANKS = Ranks(rank=0, local_rank=0, world_size=1)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "aliased_bilinear"])
def test_pictures_are_scaled_in_training_and_validation_as_in_evaluation(
    small_view: Path, tmp_path: Path, interpolation: Interpolation
) -> None:
    name = interpolation.removeprefix("aliased_")
    args = TINY_MODEL_ARGS | {"img_size": 16, "pretrained_cfg_overlay": {"interpolation": name}}
    student = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=args))
    if interpolation != name:
        scale_without_antialiasing(student)
    export_student(student, str(tmp_path / "student"), crop_share=0.8, squash=False, provenance={})
    config = TrainConfig(
        view=str(small_view),
        output=str(tmp_path / "run"),
        student=StudentConfig(model=f"local-dir:{tmp_path / 'student'}"),
        augment=AugmentConfig(min_crop_area=1, max_crop_aspect=1, flip=False),
        stream=StreamConfig(num_lanes=8, num_workers=0),
        global_batch_size=16,
    )
    view = open_view(str(small_view))
    prepared = prepare(config, view, RANKS)

    def evaluated(split: str, rows: list[int], crop_share: float) -> np.ndarray:
        contents = SampleReader(view, view.split(split), None).read(rows)
        return np.stack([eval_pixels(content, 16, crop_share, interpolation=interpolation) for content in contents])

    pictures = Pictures(
        view,
        prepared.spec,
        config.stream,
        batch_size=22,
        ranks=RANKS,
        device=torch.device("cpu"),
        dtype=torch.float32,
        memory_format=prepared.memory_format,
    )
    [batch] = pictures.evaluated("val")
    expected = evaluated("val", batch.rows.tolist(), 0.8)
    assert batch.pixels.numpy().dtype == expected.dtype
    assert np.array_equal(batch.pixels.numpy(), expected)
    [trained, *_] = next(iter(prepared.stream))
    assert np.array_equal(trained.pixels.numpy(), evaluated("train", trained.rows.tolist(), 1.0).round())
