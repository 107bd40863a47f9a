"""How the pixels of a batch lie in memory."""

import pytest
import timm
import torch
from launchers import TINY_MODEL_ARGS

from shards.batches import Batch
from shards.stream import StreamConfig
from shards.view import open_view
from xmodal.students import InputSpec
from xmodal.training.pictures import Pictures, memory_format
from xmodal.training.ranks import Ranks

LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("model", "model_args", "on_gpu"),
    [
        ("resnet10t", {}, LAST),
        ("tf_efficientnet_lite0", {}, LAST),
        ("convnext_atto", {}, LAST),
        ("vit_tiny_patch16_224", TINY_MODEL_ARGS, FIRST),  # which convolves once, to cut the patches
    ],
)
def test_channels_are_last_for_what_convolves_on_a_gpu(model, model_args, on_gpu):
    student = timm.create_model(model, num_classes=3, **model_args)
    assert memory_format(student, is_on_gpu=True) == on_gpu
    assert memory_format(student, is_on_gpu=False) == FIRST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_lie_as_it_was_decided_and_are_the_same_ones(small_view, dtype):
    spec = InputSpec(
        size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_share=1.0, squash=False, interpolation="bicubic"
    )
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(4, 3), torch.arange(4), torch.ones(4, dtype=torch.bool), [])
    made = [
        Pictures(
            open_view(str(small_view)),
            spec,
            StreamConfig(),
            batch_size=4,
            ranks=Ranks(rank=0, local_rank=0, world_size=1),
            device=torch.device("cpu"),
            dtype=dtype,
            memory_format=one,
        ).pixels(batch)
        for one in (FIRST, LAST)
    ]
    assert made[0].is_contiguous()
    assert made[1].is_contiguous(memory_format=LAST)
    assert not made[1].is_contiguous()
    assert torch.equal(*made)
    assert made[1].dtype == dtype
