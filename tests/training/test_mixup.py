import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from xmodal.training.config import LossConfig, TrainConfig
from xmodal.training.losses import DistillationLoss, soft_cross_entropy
from xmodal.training.mixup import draw_share, mix_with_reversed


@given(seed=st.integers(0, 1000), share=st.floats(0, 1), num=st.integers(1, 9))
def test_mixing_the_losses_is_the_loss_of_the_mixed_labels(seed, share, num):
    generator = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(num, 3, generator=generator), torch.rand(num, 3, generator=generator).softmax(dim=1)
    loss = DistillationLoss(LossConfig(), lambda: targets)
    mixed = share * loss(logits, targets) + (1 - share) * loss(logits, targets.flip(0))
    torch.testing.assert_close(mixed, soft_cross_entropy(logits, mix_with_reversed(targets, share)))


@given(share=st.floats(0, 1), num=st.integers(1, 9))
def test_what_one_picture_gives_up_another_gets(share, num):
    pixels = torch.arange(num * 4, dtype=torch.float32).view(num, 1, 2, 2)
    mixed = mix_with_reversed(pixels, share)
    torch.testing.assert_close(mixed.sum(dim=0), pixels.sum(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[0], share * pixels[0] + (1 - share) * pixels[-1], rtol=1e-4, atol=1e-4)
    assert mix_with_reversed(pixels.bfloat16(), share).dtype == torch.bfloat16


def test_shares_are_drawn_by_torchs_seed_and_are_extreme_for_a_small_alpha():
    torch.manual_seed(3)
    small, large = ([draw_share(alpha) for _ in range(300)] for alpha in (0.1, 5.0))
    torch.manual_seed(3)
    assert [draw_share(0.1) for _ in range(300)] == small
    assert all(0 <= share <= 1 for share in small + large)
    assert sum(0.1 < share < 0.9 for share in small) < 100
    assert sum(0.1 < share < 0.9 for share in large) > 290


def test_nothing_can_be_mixed_in_forward_passes_of_one_sample():
    with pytest.raises(ConfigError, match="has no effect on forward passes of one sample"):
        TrainConfig(view="v", output="o", mixup=0.2, micro_batch_size=1)
