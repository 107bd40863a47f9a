"""Bytes → pixels: what people expect of an orientation tag, transparency, CMYK, 16 bits, and animation.

It knows no torch: the workers that fetch pictures use it too.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageEnhance

from shards.checks import require_range

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
            image.load()
            return to_rgb(image)
    except Exception as error:  # Pillow raises whatever its parsing of damaged bytes trips over
        raise UndecodableImageError(str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as upright 8-bit RGB, transparency on white."""
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The picture turned and mirrored as its EXIF says.

    `ImageOps.exif_transpose` also writes the EXIF anew, which fails for many a tag that a camera or an editor wrote.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  as above; EXIF that cannot be read is no reason to lose the picture
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its high byte: Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(values / 256, 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training picture is varied. All of it off gives the evaluation picture."""

    min_crop_area: float = 0.35
    """Smallest share of the picture's area that a random crop keeps; 1, with `max_crop_aspect` 1, for none at all (or
    the middle square of a picture that is none)."""
    max_crop_aspect: float = 1.333
    """Largest ratio of a crop's width to height, and of height to width."""
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
    erasing: float = 0.0
    """Share of the pictures of which a rectangle (2 to 33 % of the area) is filled with noise."""

    def __post_init__(self) -> None:
        require_range(self, "min_crop_area", above=0, most=1)
        require_range(self, "max_shift", "color_jitter", "grayscale", "erasing", least=0, most=1)
        require_range(self, "max_crop_aspect", least=1)
        require_range(self, "max_rotation", least=0, most=180)


def train_pixels(image: Image.Image, size: int, augment: AugmentConfig, generator: np.random.Generator) -> np.ndarray:
    """A varied picture, uint8 `(3, size, size)`. `generator` alone decides how."""
    left, top, right, bottom = _crop_box(image.size, augment, generator)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=2.0)
    if augment.flip and generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment.max_shift or augment.max_rotation:
        image = _shift_and_rotate(image, augment, generator)
    if augment.color_jitter:
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(1 + augment.color_jitter * generator.uniform(-1, 1))
    if augment.grayscale and generator.random() < augment.grayscale:
        image = image.convert("L").convert("RGB")
    pixels = _to_array(image)
    if augment.erasing and generator.random() < augment.erasing:
        _erase(pixels, generator)
    return pixels


def eval_pixels(image: Image.Image, size: int, crop_share: float = 1.0) -> np.ndarray:
    """The middle square of a picture, uint8 `(3, size, size)`: `crop_share` of its shorter side."""
    width, height = image.size
    side = min(width, height) * crop_share
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return _to_array(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def _to_array(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _crop_box(
    size: tuple[int, int], augment: AugmentConfig, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random box of the picture with area and aspect in the configured ranges (Szegedy et al. 2015, §6)."""
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(augment.min_crop_area, 1)
        limit = np.log(augment.max_crop_aspect)
        aspect = float(np.exp(generator.uniform(-limit, limit)))
        crop_width, crop_height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if crop_width <= width and crop_height <= height:
            left, top = generator.uniform(0, width - crop_width), generator.uniform(0, height - crop_height)
            return (left, top, left + crop_width, top + crop_height)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


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
