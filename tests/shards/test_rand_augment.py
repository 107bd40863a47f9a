import numpy as np
import pytest
from made_pictures import textured
from PIL import Image

from shards.rand_augment import OPERATIONS, rand_augment


@pytest.fixture
def picture() -> Image.Image:
    return textured(48, 48)


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_keeps_size_and_mode_and_does_nothing_at_no_strength(picture, number, sign):
    for strength in (0.0, 0.5, 1.0):
        made = OPERATIONS[number](picture, strength, sign)
        assert (made.size, made.mode) == (picture.size, "RGB")
    if number not in (1, 2):  # autocontrast and equalisation have no strength
        assert OPERATIONS[number](picture, 0.0, sign).tobytes() == picture.tobytes()


def test_all_but_one_operation_change_the_picture_and_no_two_alike(picture):
    made = [np.asarray(operation(picture, 0.8, 1)).tobytes() for operation in OPERATIONS]
    assert [one == picture.tobytes() for one in made] == [True] + [False] * 13
    assert len(set(made)) == 14


def test_the_generator_alone_decides(picture):
    made = [rand_augment(picture, 0.9, np.random.default_rng(seed)).tobytes() for seed in range(60)]
    np.random.seed(7)
    assert [rand_augment(picture, 0.9, np.random.default_rng(seed)).tobytes() for seed in range(60)] == made
    assert len(set(made)) > 45


def test_stronger_is_farther_from_the_picture(picture):
    plain = np.asarray(picture).astype(int)

    def distance(strength: float) -> float:
        made = [rand_augment(picture, strength, np.random.default_rng(seed)) for seed in range(60)]
        return float(np.mean([abs(np.asarray(one).astype(int) - plain).mean() for one in made]))

    assert distance(0.2) < distance(0.5) < distance(1.0)
