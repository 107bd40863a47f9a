"""RandAugment (Cubuk et al. 2020): two of fourteen operations for each picture, all of one strength.

The libraries' own draw from global generators; here the picture's own decides, so that a resumed run sees it again.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_OPERATIONS = 2
WHITE = (255, 255, 255)


def rand_augment(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """An RGB picture after two operations of `strength` (0 to 1), drawn with replacement."""
    for number in generator.integers(0, len(OPERATIONS), NUM_OPERATIONS):
        sign = 1 if generator.random() < 0.5 else -1
        image = OPERATIONS[number](image, strength, sign)
    return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=WHITE)


def _shear_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0.3 * strength * sign, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, 0.3 * strength * sign, 1, 0)


def _translate_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0.45 * strength * sign * image.width, 0, 1, 0)


def _translate_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, 0.45 * strength * sign * image.height)


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=WHITE)


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> "_Operation":
    return lambda image, strength, sign: enhancer(image).enhance(1 + 0.9 * strength * sign)


_Operation = Callable[[Image.Image, float, int], Image.Image]
OPERATIONS: tuple[_Operation, ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
    lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1 - strength))),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Sharpness),
    _rotate,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
"""Picture, strength 0 to 1, and the direction of those that have one → picture. The ranges are torchvision's."""
