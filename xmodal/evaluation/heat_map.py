"""A picture beside itself with a heat map over it, as an image with a caption."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.decode import Box

_LONGEST_SIDE = 640
_SHORTEST_SIDE = 240
_GAP = 8
_TEXT_SIZE = 15
_LINE_HEIGHT = 22
_WHITE, _BLACK = (255, 255, 255), (20, 20, 20)
# From black by violet, red and orange to light yellow: what is hotter is lighter too, so it survives a grey printer.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
_UNSEEN = 0.35
"""Brightness of what lies outside of the square that the student saw."""
_PICTURE_SHARE = 0.3
"""Of the picture in the hottest place, where the rest is colour."""


def heat_map(picture: Image.Image, heat: np.ndarray, box: Box, caption: Sequence[str]) -> Image.Image:
    """A picture, and beside it the same with `heat` `(rows, columns)` over the part `box`; below it lines of text.

    Large and small pictures are brought to a size at which both can be looked at.
    """
    scale = min(_LONGEST_SIDE / max(picture.size), max(1.0, _SHORTEST_SIDE / min(picture.size)))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    left = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    edges = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    right = Image.fromarray(heated(np.asarray(left), heat, edges))
    font = ImageFont.load_default(_TEXT_SIZE)
    width = max(2 * size[0] + _GAP, *(round(font.getlength(line)) for line in caption), 1)
    sheet = Image.new("RGB", (width, size[1] + _GAP + _LINE_HEIGHT * len(caption)), _WHITE)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (size[0] + _GAP, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(caption):
        draw.text((0, size[1] + _GAP + number * _LINE_HEIGHT), line, fill=_BLACK, font=font)
    return sheet


def heated(pixels: np.ndarray, heat: np.ndarray, box: Box) -> np.ndarray:
    """uint8 `(height, width, 3)` with `heat` over the part `box`; what lies outside of it is darkened."""
    height, width = pixels.shape[:2]
    left, right = (min(max(round(edge), 0), width) for edge in (box[0], box[2]))
    top, bottom = (min(max(round(edge), 0), height) for edge in (box[1], box[3]))
    made = pixels * _UNSEEN
    if right > left and bottom > top:
        values = _spread(heat, right - left, bottom - top)[..., None]
        seen = pixels[top:bottom, left:right]
        # The hotter, the more colour and the less picture; the coldest places are the picture in half its light.
        share = _PICTURE_SHARE + (0.55 - _PICTURE_SHARE) * (1 - values)
        made[top:bottom, left:right] = share * seen + (1 - share) * _coloured(values[..., 0])
    return made.round().clip(0, 255).astype(np.uint8)


def _spread(heat: np.ndarray, width: int, height: int) -> np.ndarray:
    """The heat of patches as that of pixels, 0 to 1."""
    low, high = float(heat.min()), float(heat.max())
    even = np.zeros_like(heat) if high <= low else (heat - low) / (high - low)
    image = Image.fromarray(even.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64).clip(0, 1)


def _coloured(values: np.ndarray) -> np.ndarray:
    """0 to 1 → colours, float64 `(…, 3)`."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, stops, channel) for channel in _COLOURS.T], axis=-1)
