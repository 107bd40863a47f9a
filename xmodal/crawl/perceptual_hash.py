"""PDQ, the perceptual hash of Facebook's ThreatExchange: near duplicates differ in few of its 256 bits.

PDQ scales a picture's luminance down to 512 pixels, blurs it by two passes of a box in each direction, takes 64 by 64
points of that, and keeps which of its 16 by 16 lowest cosine frequencies are above their median. All but the last step
is linear in rows and columns, so it is done by two small matrices, which depend on height and width alone: ten times
faster than pixel by pixel.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

MAX_SIDE = 512
"""Longest side that is looked at closely; what lies above costs time and changes next to nothing."""
_POINTS = 64
_FREQUENCIES = 16
_MIN_SIDE = 5
"""The hash of a smaller picture is all zeros, as in PDQ's own code."""


def pdq_hash(image: Image.Image) -> str:
    """The PDQ hash of a picture of mode L or RGB: 64 hex digits. Near duplicates differ in 31 bits or less."""
    if min(image.size) < _MIN_SIDE:
        return "0" * 64
    scale = min(1.0, MAX_SIDE / max(image.size))
    width, height = (max(_MIN_SIDE, round(side * scale)) for side in image.size)
    # Whole pixels are put together by Pillow as far as that goes, to spare memory; means of means are the same means.
    luma = image.reduce(int(1 / scale)).convert("L") if scale <= 0.5 else image.convert("L")
    pixels = np.asarray(luma, dtype=np.float32)
    frequencies = _to_frequencies(pixels.shape[0], height) @ pixels @ _to_frequencies(pixels.shape[1], width).T
    # The lower one of the two in the middle; bits from the highest frequency to the lowest.
    median = np.partition(frequencies, frequencies.size // 2 - 1, axis=None)[frequencies.size // 2 - 1]
    return np.packbits((frequencies > median).ravel()[::-1]).tobytes().hex()


@lru_cache(maxsize=2048)
def _to_frequencies(length: int, scaled: int) -> np.ndarray:
    """What takes a row of `length` pixels, scaled to `scaled`, to its lowest frequencies: float32 `(16, length)`."""
    places = ((np.arange(_POINTS) + 0.5) * scaled / _POINTS).astype(int)
    box = _box(scaled)
    points = box[places] @ box
    row, column = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_POINTS)
    cosines = np.sqrt(2 / _POINTS) * np.cos(np.pi / 2 / _POINTS * row * (2 * column + 1))
    return (cosines @ points @ _means(length, scaled)).astype(np.float32)


def _box(length: int) -> np.ndarray:
    """The means of PDQ's window around each pixel, cut off at the ends: float64 `(length, length)`."""
    window = (length + 2 * _POINTS - 1) // (2 * _POINTS)
    ahead = (window + 2) // 2 - 1
    behind = window - 1 - ahead
    offset = np.arange(length) - np.arange(length)[:, None]
    inside = (offset >= -behind) & (offset <= ahead)
    return inside / inside.sum(axis=1, keepdims=True)


def _means(length: int, scaled: int) -> np.ndarray:
    """What scales `length` pixels to `scaled` by the box filter, as Pillow does: float64 `(scaled, length)`."""
    if scaled == length:
        return np.eye(length)
    half = max(1.0, length / scaled) / 2
    centres = (np.arange(scaled) + 0.5)[:, None] * length / scaled
    distance = np.arange(length) + 0.5 - centres
    inside = (distance > -half) & (distance <= half)
    return inside / inside.sum(axis=1, keepdims=True)
