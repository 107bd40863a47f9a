import made_pictures as made
import numpy as np
import pytest
from PIL import Image

from xmodal.crawl.scaling import LARGEST_BLURRED_FACTOR, LARGEST_LINEAR_FACTOR, scaled_down


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


def test_so_are_those_of_what_shrinks_by_more():
    # First weights of 8 bits for a pixel and its neighbours, in each direction.
    image = made.textured(150, 120)
    size = (90, 72)
    assert LARGEST_LINEAR_FACTOR < 150 / size[0] < LARGEST_BLURRED_FACTOR
    assert np.array_equal(np.asarray(scaled_down(image, size)), linear(blurred(np.asarray(image)), size))


@pytest.mark.parametrize("factor", [1.25, 1.6])
def test_a_picture_whose_memory_is_in_pieces_is_scaled_the_same(factor):
    # Pillow's own memory of a picture is in pieces of 16 MiB. The upper part of this one is `small`.
    small = made.textured(1600, 800)
    large = Image.new("RGB", (1600, 4000))
    large.paste(small)
    with pytest.raises(ValueError, match="not contiguous"):
        large.__arrow_c_array__()
    width, height = round(1600 / factor), round(800 / factor)
    upper = scaled_down(large, (width, 5 * height)).crop((0, 0, width, height - 2))
    assert np.array_equal(np.asarray(upper), np.asarray(scaled_down(small, (width, height)))[: height - 2])


def blurred(pixels: np.ndarray) -> np.ndarray:
    beside = np.exp(-1 / (2 * 0.5**2))
    side = round(256 * beside / (1 + 2 * beside))
    padded = np.pad(pixels.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    rows = side * (padded[:, :-2] + padded[:, 2:]) + (256 - 2 * side) * padded[:, 1:-1]
    total = side * (rows[:-2] + rows[2:]) + (256 - 2 * side) * rows[1:-1]
    return ((total + (1 << 15)) >> 16).astype(np.uint8)


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
