"""Bytes → pixels: what people expect of an orientation tag, transparency, CMYK, 16 bits, and animation.

It knows no torch: the workers that fetch pictures use it too.
"""

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may try: some of its other readers start programs or are seldom looked at."""

# Pillow warns of oddities of pictures that are handled here. Told once, for the whole process: `catch_warnings` around
# each picture would not be safe where several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\b")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the picture upright."""
_SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}


class UndecodableImageError(Exception):
    """The bytes are not a whole picture of a known format."""


def decode_rgb(content: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decode a picture to RGB: first frame, upright by its EXIF orientation, transparency on white.

    With `min_side`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides stay at least that
    many pixels, which is several times faster for large photos. Raises UndecodableImageError.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            return to_rgb(image)
    except MemoryError:  # says nothing of the picture
        raise
    except Exception as error:  # Pillow raises whatever its parsing of damaged bytes trips over
        raise _undecodable(error) from error


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of a picture, in pixels."""


def decode_crop(content: bytes, choose: Callable[[tuple[int, int]], Box], size: int | None) -> np.ndarray:
    """Decode a part of a picture as `decode_rgb` does: uint8 `(height, width, 3 or 4)`, its edges at whole pixels.

    A fourth channel is what `pixels_of` gives, and means nothing.
    `choose` is given width and height of the upright picture, and says which part. A JPEG is decoded at 1/2, 1/4 or
    1/8 of its size where that leaves both sides of the part at least `size` pixels; with None, in full as all others.
    Raises UndecodableImageError.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if size is not None and isinstance(image, JpegImageFile):
                width, height = image.size
                whole = (height, width) if is_sideways(image) else (width, height)
                box = choose(whole)
                shrink = max(1.0, min(box[2] - box[0], box[3] - box[1]) / size)
                image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
                rgb = to_rgb(image)
            else:
                rgb = to_rgb(image)
                whole = rgb.size
                box = choose(whole)
            left, top, right, bottom = _whole_pixels(box, whole, rgb.size)
            return np.array(pixels_of(rgb)[top:bottom, left:right])
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> UndecodableImageError:
    # Pillow's own message of these is the address of a buffer.
    unknown = isinstance(error, UnidentifiedImageError)
    return UndecodableImageError("no picture of a known format" if unknown else str(error))


def _whole_pixels(box: Box, whole: tuple[int, int], decoded: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of the whole picture as one of the decoded, of at least a pixel."""
    edges = []
    for low, high, side, pixels in zip(box[:2], box[2:], whole, decoded, strict=True):
        first = min(round(low * pixels / side), pixels - 1)
        edges.append((first, max(first + 1, min(round(high * pixels / side), pixels))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def pixels_of(image: Image.Image) -> np.ndarray:
    """The memory of an RGB picture, uint8 `(height, width, 4)`, whose fourth channel is unused; not to be written to.

    Where that is in pieces, as Pillow has it of large pictures, a copy, `(height, width, 3)`, in ten times the time.
    """
    try:
        return pa.array(image).values.to_numpy().reshape(image.height, image.width, 4)
    except ValueError:
        return np.asarray(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode, decoded, as upright 8-bit RGB, transparency on white."""
    image.load()
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    # Not when it is RGB already: a copy of a large photo takes as long as decoding it.
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The picture turned and mirrored as its EXIF says.

    `ImageOps.exif_transpose` also writes the EXIF anew, which fails for many a tag that a camera or an editor wrote.
    """
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def is_sideways(image: Image.Image) -> bool:
    """Whether being `upright` exchanges its width and height."""
    return _turn(image) in _SIDEWAYS


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  as above; EXIF that cannot be read is no reason to lose the picture
        return None
    return _TURNS.get(orientation) if orientation else None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its high byte: Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(values / 256, 0, 255).astype(np.uint8))
