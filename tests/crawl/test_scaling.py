import made_pictures as made
import numpy as np
import pytest
from PIL import Image

from xmodal.crawl.scaling import LARGEST_LINEAR_FACTOR, scaled_down


def error(image: Image.Image, wanted: Image.Image) -> float:
    """Mean squared error."""
    return float(((np.asarray(image, dtype=float) - np.asarray(wanted, dtype=float)) ** 2).mean())


@pytest.mark.parametrize("factor", [1.05, 1.17, 1.33, 1.5, 1.7, 1.95])
def test_a_picture_scaled_down_is_as_near_to_lanczos_as_the_mean_over_an_area(factor):
    image = made.textured(600, 450)
    size = (round(600 / factor), round(450 / factor))
    lanczos, box = (image.resize(size, kind) for kind in (Image.Resampling.LANCZOS, Image.Resampling.BOX))
    scaled = scaled_down(image, size)
    assert scaled.size == size
    assert error(scaled, lanczos) <= error(box, lanczos)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_transparency_and_size_are_kept(mode):
    scaled = scaled_down(made.pixels(90, 60).convert(mode), (80, 53))
    assert (scaled.mode, scaled.size) == (mode, (80, 53))


def test_the_bytes_are_those_of_every_processor():
    # Of a computation in whole numbers written out: two pixels a side, weights of 11 bits.
    image = made.textured(150, 120)
    size = (120, 96)
    assert 150 / size[0] < LARGEST_LINEAR_FACTOR
    assert np.array_equal(np.asarray(scaled_down(image, size)), linear(np.asarray(image), size))


def linear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    def taps(num_from: int, num_to: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = (np.arange(num_to) + 0.5) * (num_from / num_to) - 0.5
        left = np.clip(np.floor(place).astype(int), 0, num_from - 1)
        part = np.where(place < 0, 0.0, place - left)
        return left, np.minimum(left + 1, num_from - 1), np.rint(part * 2048).astype(np.int64)

    width, height = size
    left, right, part = taps(pixels.shape[1], width)
    part = part[None, :, None]
    rows = pixels[:, left].astype(np.int64) * (2048 - part) + pixels[:, right].astype(np.int64) * part
    upper, lower, part = taps(pixels.shape[0], height)
    part = part[:, None, None]
    total = (((2048 - part) * (rows[upper] >> 4)) >> 16) + ((part * (rows[lower] >> 4)) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)
