"""Bytes of a picture → the pixels that a student sees: varied for training, the middle square for evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional

from shards.checks import require_range
from shards.decode import Box, decode_crop
from shards.errors import ConfigError
from shards.rand_augment import rand_augment


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


def train_pixels(content: bytes, size: int, augment: AugmentConfig, generator: np.random.Generator) -> np.ndarray:
    """A varied picture, uint8 `(3, size, size)`. `generator` alone decides how. Raises UndecodableImageError."""
    pixels = _resize(decode_crop(content, lambda whole: _random_box(whole, augment, generator), size), size)
    if augment.flip and generator.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if any((augment.max_shift, augment.max_rotation, augment.color_jitter, augment.grayscale, augment.rand_augment)):
        pixels = _move_and_recolor(pixels, augment, generator)
    if augment.erasing and generator.random() < augment.erasing:
        pixels = pixels.copy()
        _erase(pixels, generator)
    return pixels


def eval_pixels(content: bytes, size: int, crop_share: float = 1.0, *, squash: bool = False) -> np.ndarray:
    """The middle square of a picture, uint8 `(3, size, size)`: `crop_share` of its shorter side.

    With `squash`, `crop_share` of each side, stretched to a square. Raises UndecodableImageError.
    """
    return _resize(decode_crop(content, lambda whole: eval_box(whole, crop_share, squash=squash), size), size)


def eval_box(whole: tuple[int, int], crop_share: float, *, squash: bool) -> Box:
    """The part of an upright picture of some width and height that `eval_pixels` takes."""
    return _middle_share(whole, crop_share) if squash else _middle_box(whole, crop_share)


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 `(height, width, 3 or 4)` → `(3, size, size)`, bicubic with antialiasing.

    Torch's has the results of Pillow's, up to rounding, in a fifth of the time.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return functional.interpolate(image, size=(size, size), mode="bicubic", antialias=True)[0, :3].numpy()


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
