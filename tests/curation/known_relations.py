"""Pictures of which it is known how they relate to an original: copies of many kinds, and look-alikes."""

from collections.abc import Callable, Mapping

import numpy as np
from made_pictures import encode
from PIL import Image, ImageDraw

from xmodal.crawl.pictures import PictureConfig, check_picture
from xmodal.curation.near_duplicates import pack_hashes

Change = Callable[[Image.Image], bytes]


def _scaled(factor: float) -> Change:
    def change(image: Image.Image) -> bytes:
        size = (max(16, round(image.width * factor)), max(16, round(image.height * factor)))
        return encode(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=90)

    return change


def _compressed(quality: int) -> Change:
    return lambda image: encode(image, "JPEG", quality=quality)


def _cropped(left: float, top: float, right: float, bottom: float) -> Change:
    """These shares of the sides are cut off."""

    def change(image: Image.Image) -> bytes:
        width, height = image.size
        box = (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
        return encode(image.crop(box), "JPEG", quality=90)

    return change


def _watermarked(image: Image.Image) -> bytes:
    """A name in the lower right corner, a quarter as wide and an eighth as high as the picture, half transparent."""
    width, height = image.size
    layer = Image.new("RGBA", image.size)
    box = (round(0.72 * width), round(0.85 * height), round(0.97 * width), round(0.97 * height))
    draw = ImageDraw.Draw(layer)
    draw.rectangle(box, fill=(0, 0, 0, 100))
    draw.text((box[0] + 2, box[1] + 1), "@crowd", fill=(255, 255, 255, 160), font_size=max(8, (box[3] - box[1]) * 0.7))
    return encode(Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"), "JPEG", quality=90)


def _grey(image: Image.Image) -> bytes:
    return encode(image.convert("L"), "JPEG", quality=90)


RESIZED: Mapping[str, Change] = {f"scaled to {factor:.0%}": _scaled(factor) for factor in (0.25, 0.5, 0.75, 1.5, 2)}
RECOMPRESSED: Mapping[str, Change] = {f"JPEG {quality}": _compressed(quality) for quality in (30, 40, 50, 70, 85, 95)}
CHANGED: Mapping[str, Change] = {
    "5 % cut off one side": _cropped(0.05, 0, 0, 0),
    "5 % cut off in all, a quarter at each side": _cropped(0.0125, 0.0125, 0.0125, 0.0125),
    "5 % cut off each side": _cropped(0.05, 0.05, 0.05, 0.05),
    "watermark": _watermarked,
    "grey": _grey,
}


def packed_hash(content: bytes) -> np.ndarray:
    """As `xmodal label` stores it: uint8 `(1, 32)`."""
    return pack_hashes([check_picture(content, PictureConfig()).pdq])
