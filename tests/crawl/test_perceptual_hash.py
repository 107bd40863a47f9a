import made_pictures as made
import numpy as np
import pdqhash
import pytest
from PIL import Image

from xmodal.crawl.perceptual_hash import MAX_SIDE, pdq_hash


def reference_hash(rgb: Image.Image) -> str:
    """By the code of PDQ's authors."""
    bits, _ = pdqhash.compute(np.asarray(rgb))
    return np.packbits(bits).tobytes().hex()


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def noise(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "size",
    [
        (63, 64),
        (64, 64),
        (65, 66),
        (127, 128),
        (129, 255),
        (256, 257),
        (400, 300),
        (511, 512),
    ],
)
@pytest.mark.parametrize("make", [made.textured, noise])
def test_the_hash_is_that_of_pdqs_authors(make, size):
    # But for what lies at the median to within the rounding of luminance to whole numbers.
    apart = [bits_apart(pdq_hash(image), reference_hash(image)) for image in (make(*size, seed) for seed in range(20))]
    assert max(apart) <= 6
    assert np.mean(apart) < 2


@pytest.mark.parametrize("size", [(513, 512), (600, 450), (1024, 700), (1025, 700), (2000, 900), (700, 2100)])
def test_larger_pictures_are_scaled_down_before(size):
    for seed in range(5):
        image = made.textured(*size, seed)
        smaller = image.copy()
        smaller.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
        assert bits_apart(pdq_hash(image), reference_hash(smaller)) <= 12


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (4, 300), (300, 1)])
def test_a_picture_too_small_to_be_hashed_is_all_zeros_as_with_its_authors(size):
    assert pdq_hash(made.pixels(*size)) == reference_hash(made.pixels(*size)) == "0" * 64


def test_grey_and_colour_of_the_same_luminance_have_one_hash():
    image = made.pixels(300, 200)
    assert pdq_hash(image) == pdq_hash(image.convert("L"))


def test_half_of_the_bits_are_set():
    assert bits_apart(pdq_hash(made.textured(300, 200)), "0" * 64) == 128


def test_a_long_strip_has_a_hash():
    assert len(pdq_hash(made.pixels(70_000, 16))) == 64
