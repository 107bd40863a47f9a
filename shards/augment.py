"""Bytes of a picture → the pixels that a student sees: varied for training, the middle square for evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional

from shards.checks import require_range
from shards.decode import Box, decode_crop
from shards.errors import ConfigError
from shards.rand_augment import rand_augment

Interpolation = Literal["bicubic", "bilinear", "aliased_bilinear"]
"""How a part of a picture is scaled. The first two are Pillow's and torch's, with antialiasing: where a picture becomes
smaller, each pixel is a mean of all that it stands for. `aliased_bilinear` is `tf.image.resize` as it is by default: a
mean of the four nearest, whatever lies between those of one pixel and the next."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training picture is varied. All of it off gives the evaluation picture."""

    min_crop_area: float = 0.35
    """Smallest share of the picture's area that a random crop keeps; 1, with `max_crop_aspect` 1, for none at all (or
    the middle square of a picture that is none)."""
    max_crop_aspect: float = 1.333
    """Largest ratio of a crop's width to height, and of height to width."""
    squash: bool = False
    """Instead of crops, the whole picture, stretched to a square; with `min_crop_area` and `max_crop_aspect` 1."""
    flip: bool = True
    """Mirror half of the pictures left to right."""
    max_shift: float = 0.0
    """Largest shift, as a share of the side, each way; what comes into view is white."""
    max_rotation: float = 0.0
    """Largest rotation, in degrees, each way; what comes into view is white."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation are each scaled by 1 ± this."""
    grayscale: float = 0.0
    """Share of the pictures that lose their colours."""
    rand_augment: float = 0.0
    """Strength, 0 to 1, of two operations that are drawn for each picture out of fourteen (RandAugment, Cubuk et al.
    2020): rotation, shear, shift, colours, contrast, posterising and such. 0: none."""
    erasing: float = 0.0
    """Share of the pictures of which a rectangle (2 to 33 % of the area) is filled with noise."""

    def __post_init__(self) -> None:
        require_range(self, "min_crop_area", above=0, most=1)
        require_range(self, "max_shift", "color_jitter", "grayscale", "rand_augment", "erasing", least=0, most=1)
        require_range(self, "max_crop_aspect", least=1)
        require_range(self, "max_rotation", least=0, most=180)
        for key in ("min_crop_area", "max_crop_aspect"):
            if self.squash and getattr(self, key) != 1:
                raise ConfigError(key, getattr(self, key), "has no effect with squash; set it to 1")


def train_pixels(
    content: bytes,
    size: int,
    augment: AugmentConfig,
    generator: np.random.Generator,
    interpolation: Interpolation = "bicubic",
) -> np.ndarray:
    """A varied picture, uint8 `(3, size, size)`. `generator` alone decides how. Raises UndecodableImageError."""
    pixels = _scaled(content, lambda whole: _random_box(whole, augment, generator), size, interpolation)
    if pixels.dtype != np.uint8:
        pixels = pixels.round().astype(np.uint8)
    if augment.flip and generator.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if any((augment.max_shift, augment.max_rotation, augment.color_jitter, augment.grayscale, augment.rand_augment)):
        pixels = _move_and_recolor(pixels, augment, generator)
    if augment.erasing and generator.random() < augment.erasing:
        pixels = pixels.copy()
        _erase(pixels, generator)
    return pixels


def eval_pixels(
    content: bytes,
    size: int,
    crop_share: float = 1.0,
    *,
    squash: bool = False,
    interpolation: Interpolation = "bicubic",
) -> np.ndarray:
    """The middle square of a picture, `(3, size, size)` of `eval_dtype`: `crop_share` of its shorter side.

    With `squash`, `crop_share` of each side, stretched to a square. Raises UndecodableImageError.
    """
    return _scaled(content, lambda whole: eval_box(whole, crop_share, squash=squash), size, interpolation)


def eval_dtype(interpolation: Interpolation) -> type[np.generic]:
    """Of the pixels of `eval_pixels`, 0 to 255: uint8, or float32 where Keras does not round either."""
    return np.float32 if interpolation == "aliased_bilinear" else np.uint8


def eval_box(whole: tuple[int, int], crop_share: float, *, squash: bool) -> Box:
    """The part of an upright picture of some width and height that `eval_pixels` takes."""
    return _middle_share(whole, crop_share) if squash else _middle_box(whole, crop_share)


def _scaled(
    content: bytes, choose: Callable[[tuple[int, int]], Box], size: int, interpolation: Interpolation
) -> np.ndarray:
    """The chosen part of a picture, `(3, size, size)` of `eval_dtype`."""
    if interpolation == "aliased_bilinear":
        # Decoded in full: of a JPEG at half its size, the four nearest pixels are others.
        return _from_four_nearest(decode_crop(content, choose, None), size)
    pixels = torch.from_numpy(decode_crop(content, choose, size)).permute(2, 0, 1)[None]
    # The results of Pillow's, up to rounding, in a fifth of the time.
    return functional.interpolate(pixels, size=(size, size), mode=interpolation, antialias=True)[0, :3].numpy()


def _from_four_nearest(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 `(height, width, 3 or 4)` → float32 `(3, size, size)`, as `tf.image.resize`.

    Not by torch, which would make floats of all pixels of a large photo first.
    """
    (above, below, down), (left, right, across) = (_neighbours(length, size) for length in pixels.shape[:2])
    rows = pixels[above, :, :3], pixels[below, :, :3]
    upper, lower = (
        of_row[:, left] + (of_row[:, right].astype(np.float32) - of_row[:, left]) * across[:, None] for of_row in rows
    )
    return np.ascontiguousarray((upper + (lower - upper) * down[:, None, None]).transpose(2, 0, 1))


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` pixels that `length` become: the two nearest, and how far towards the second it lies.

    The centres of pixels are at their halves; beyond the outermost centre, that pixel is both.
    """
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size) - np.float32(0.5)
    first = np.floor(places)
    return (
        np.maximum(first, 0).astype(np.intp),
        np.minimum(first + 1, length - 1).astype(np.intp),
        places - first,
    )


def _move_and_recolor(pixels: np.ndarray, augment: AugmentConfig, generator: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if augment.max_shift or augment.max_rotation:
        image = _shift_and_rotate(image, augment, generator)
    if augment.color_jitter:
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(1 + augment.color_jitter * generator.uniform(-1, 1))
    if augment.grayscale and generator.random() < augment.grayscale:
        image = image.convert("L").convert("RGB")
    if augment.rand_augment:
        image = rand_augment(image, augment.rand_augment, generator)
    return np.asarray(image).transpose(2, 0, 1)


def _middle_box(whole: tuple[int, int], crop_share: float) -> Box:
    width, height = whole
    side = min(whole) * crop_share
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _middle_share(whole: tuple[int, int], crop_share: float) -> Box:
    width, height = whole
    left, top = width * (1 - crop_share) / 2, height * (1 - crop_share) / 2
    return (left, top, width - left, height - top)


def _random_box(whole: tuple[int, int], augment: AugmentConfig, generator: np.random.Generator) -> Box:
    """A random box of the picture with area and aspect in the configured ranges (Szegedy et al. 2015, §6)."""
    width, height = whole
    if augment.squash:
        return _middle_share(whole, 1.0)
    for _ in range(10):
        area = width * height * generator.uniform(augment.min_crop_area, 1)
        limit = np.log(augment.max_crop_aspect)
        aspect = float(np.exp(generator.uniform(-limit, limit)))
        crop_width, crop_height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if crop_width <= width and crop_height <= height:
            left, top = generator.uniform(0, width - crop_width), generator.uniform(0, height - crop_height)
            return (left, top, left + crop_width, top + crop_height)
    return _middle_box(whole, 1.0)


def _shift_and_rotate(image: Image.Image, augment: AugmentConfig, generator: np.random.Generator) -> Image.Image:
    size = image.size[0]
    right, down = (round(offset * size) for offset in generator.uniform(-augment.max_shift, augment.max_shift, 2))
    angle = generator.uniform(-augment.max_rotation, augment.max_rotation)
    return image.rotate(angle, resample=Image.Resampling.BILINEAR, translate=(right, down), fillcolor=(255, 255, 255))


def _erase(pixels: np.ndarray, generator: np.random.Generator) -> None:
    """Fill a random rectangle with noise, in place (Zhong et al. 2017)."""
    size = pixels.shape[1]
    share, aspect = generator.uniform(0.02, 0.33), np.exp(generator.uniform(np.log(0.3), np.log(1 / 0.3)))
    height = min(size, max(1, round(size * (share * aspect) ** 0.5)))
    width = min(size, max(1, round(size * (share / aspect) ** 0.5)))
    top, left = generator.integers(0, size - height + 1), generator.integers(0, size - width + 1)
    pixels[:, top : top + height, left : left + width] = generator.integers(0, 256, (3, height, width), dtype=np.uint8)
