"""PDQ, the perceptual hash of Facebook's ThreatExchange: near duplicates differ in few of its 256 bits.

PDQ blurs a picture's luminance by two passes of a box in each direction, takes 64 by 64 points of that, and keeps which
of its 16 by 16 lowest cosine frequencies are above their median. All but the last step is linear in rows and columns,
so it is done by two small matrices, which depend on height and width alone: some ten times faster than pixel by pixel.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

MAX_SIDE = 512
"""Pictures are scaled down to it before; what lies above costs time and changes next to nothing."""
_POINTS = 64
_FREQUENCIES = 16
_MIN_SIDE = 5
"""The hash of a smaller picture is all zeros, as in PDQ's own code."""


def pdq_hash(image: Image.Image) -> str:
    """The PDQ hash of a picture of mode L or RGB: 64 hex digits. Near duplicates differ in 31 bits or less."""
    luma = image.convert("L")
    if min(luma.size) < _MIN_SIDE:
        return "0" * 64
    if max(luma.size) > MAX_SIDE:
        luma.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(luma, dtype=np.float32)
    height, width = pixels.shape
    frequencies = _to_frequencies(height) @ pixels @ _to_frequencies(width).T
    # The lower one of the two in the middle; bits from the highest frequency to the lowest.
    median = np.sort(frequencies, axis=None)[frequencies.size // 2 - 1]
    return np.packbits((frequencies > median).ravel()[::-1]).tobytes().hex()


@lru_cache(maxsize=2048)
def _to_frequencies(length: int) -> np.ndarray:
    """What takes a row of so many pixels to its lowest frequencies but the mean: float32 `(16, length)`."""
    places = ((np.arange(_POINTS) + 0.5) * length / _POINTS).astype(int)
    box = _box(length)
    blurred = box[places] @ box
    row, column = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_POINTS)
    cosines = np.sqrt(2 / _POINTS) * np.cos(np.pi / 2 / _POINTS * row * (2 * column + 1))
    return (cosines @ blurred).astype(np.float32)


def _box(length: int) -> np.ndarray:
    """The means of a window around each pixel, cut off at the ends: float64 `(length, length)`."""
    window = (length + 2 * _POINTS - 1) // (2 * _POINTS)
    ahead = (window + 2) // 2 - 1
    behind = window - 1 - ahead
    offset = np.arange(length) - np.arange(length)[:, None]
    inside = (offset >= -behind) & (offset <= ahead)
    return inside / inside.sum(axis=1, keepdims=True)
