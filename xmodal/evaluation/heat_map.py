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
_UNSEEN = 0.25
"""Brightness of what lies outside of the square that the student saw."""
_COLDEST, _HOTTEST = 0.75, 0.35
"""Share of the picture where the heat is least and most; the rest is colour."""
_HOTTEST_QUANTILE = 0.98
"""Of the patches, from which on all have the hottest colour: large transformers keep notes in a few patches without
content (Darcet et al. 2024), whose heat would leave all others dark."""
_MARGIN = 6


def heat_map(picture: Image.Image, heat: np.ndarray, box: Box, caption: Sequence[str]) -> Image.Image:
    """A picture, and beside it the same with `heat` `(rows, columns)` over the part `box`; below it lines of text.

    Large and small pictures are brought to a size at which both can be looked at.
    """
    scale = min(_LONGEST_SIDE / max(picture.size), max(1.0, _SHORTEST_SIDE / min(picture.size)))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    left = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    edges = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    right = Image.fromarray(heated(np.asarray(left), heat, edges))
    if edges[0] >= 1 or edges[1] >= 1:
        around = (round(edges[0]) - 1, round(edges[1]) - 1, round(edges[2]), round(edges[3]))
        ImageDraw.Draw(right).rectangle(around, outline=_WHITE)
    font = ImageFont.load_default(_TEXT_SIZE)
    width = max(2 * size[0] + _GAP, *(2 * _MARGIN + round(font.getlength(line)) for line in caption))
    sheet = Image.new("RGB", (width, size[1] + _GAP + _LINE_HEIGHT * len(caption)), _WHITE)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (size[0] + _GAP, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(caption):
        draw.text((_MARGIN, size[1] + _GAP + number * _LINE_HEIGHT), line, fill=_BLACK, font=font)
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
        share = _COLDEST + (_HOTTEST - _COLDEST) * values
        made[top:bottom, left:right] = share * seen + (1 - share) * _coloured(values[..., 0])
    return made.round().clip(0, 255).astype(np.uint8)


def _spread(heat: np.ndarray, width: int, height: int) -> np.ndarray:
    """The heat of patches as that of pixels, 0 to 1."""
    low, high = float(heat.min()), float(np.quantile(heat, _HOTTEST_QUANTILE))
    if high <= low:
        high = float(heat.max())
    even = np.zeros_like(heat) if high <= low else ((heat - low) / (high - low)).clip(max=1)
    image = Image.fromarray(even.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64).clip(0, 1)


def _coloured(values: np.ndarray) -> np.ndarray:
    """0 to 1 → colours, float64 `(…, 3)`."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, stops, channel) for channel in _COLOURS.T], axis=-1)
