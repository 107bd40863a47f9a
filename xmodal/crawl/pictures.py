"""What a fetched answer is: a picture to keep, or the reason why not. Its content decides, never its name or header."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pdqhash
from PIL import Image

from shards.checks import require_range
from shards.decode import FORMATS, to_rgb, upright

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens nothing larger: twice its `MAX_IMAGE_PIXELS`."""
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# PDQ itself looks at 64 by 64 means; what lies above this costs time and changes next to nothing.
_PDQ_SIDE = 512
# The longest side that libjpeg writes.
_JPEG_SIDE = 65_500


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which pictures are kept, and how those beyond the limits are re-encoded."""

    max_pixels: int = 50_000_000
    """Larger pictures are refused by their header, before anything is decoded."""
    min_side: int = 16
    """Smaller pictures (tracking pixels, spacers) are refused."""
    max_side: int = 2048
    """Pictures with a longer side are re-encoded once, scaled down to it; 0 keeps every size."""
    quality: int = 92
    """JPEG quality of what is re-encoded."""
    encode: Literal["original", "png", "jpeg"] = "original"
    """`original` keeps a picture's bytes where it can. `png` and `jpeg` store all in that one format: Hugging Face
    datasets refuses tars whose samples differ in their members, and vanilla webdataset does not decode WebP."""

    def __post_init__(self) -> None:
        require_range(self, "max_pixels", least=1, most=PILLOW_MAX_PIXELS)
        require_range(self, "min_side", least=1)
        require_range(self, "max_side", least=0)
        require_range(self, "quality", least=1, most=100)


class RefusedPictureError(Exception):
    """The bytes are no picture that we keep. `reason` is one of the codes of the failures file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was decoded in full once, so that it will be again."""

    content: bytes
    extension: str
    sha256: str
    """Of `content`, hex."""
    pdq: str
    """Perceptual hash of what a viewer sees (upright, transparency on white), 256 bits, hex."""
    width: int
    """Pixels, as a viewer sees it: after the EXIF orientation."""
    height: int


def check_picture(content: bytes, config: PictureConfig) -> Picture:
    """Decode a picture and describe it; its original bytes are kept where format and size allow.

    Raises RefusedPictureError with the reason `empty`, `not_an_image`, `too_many_pixels`, `too_small` or `undecodable`.
    """
    if not content:
        raise RefusedPictureError("empty")
    with _open(content) as image:
        _check_size(image.size, config)
        file_format = image.format or ""
        with _refusing_what_fails():
            image.load()
            rgb = to_rgb(image)
            if not _is_kept(file_format, image.size, config):
                content, file_format, rgb = _encode(image, rgb, config)
    return Picture(
        content=content,
        extension=_EXTENSIONS[file_format],
        sha256=hashlib.sha256(content).hexdigest(),
        pdq=pdq_hash(rgb),
        width=rgb.width,
        height=rgb.height,
    )


def pdq_hash(rgb: Image.Image) -> str:
    """The PDQ hash of an RGB picture: 64 hex digits. Near duplicates differ in few bits (31 or less of 256)."""
    if max(rgb.size) > _PDQ_SIDE:
        rgb = rgb.copy()
        rgb.thumbnail((_PDQ_SIDE, _PDQ_SIDE), Image.Resampling.BOX)
    bits, _ = pdqhash.compute(np.asarray(rgb))
    return np.packbits(bits).tobytes().hex()


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RefusedPictureError("too_many_pixels") from None
    except Image.UnidentifiedImageError:
        raise RefusedPictureError("not_an_image") from None
    except Exception:  # noqa: BLE001  Pillow's readers raise whatever their parsing of hostile bytes trips over
        raise RefusedPictureError("undecodable") from None


def _check_size(size: tuple[int, int], config: PictureConfig) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise RefusedPictureError("too_many_pixels")
    if min(width, height) < config.min_side:
        raise RefusedPictureError("too_small")


@contextmanager
def _refusing_what_fails() -> Iterator[None]:
    """Pillow's readers and writers raise whatever their work on hostile bytes trips over."""
    try:
        yield
    except Exception:  # noqa: BLE001  as the docstring says
        raise RefusedPictureError("undecodable") from None


def _is_kept(file_format: str, size: tuple[int, int], config: PictureConfig) -> bool:
    """Whether a picture's own bytes are stored."""
    if file_format not in _EXTENSIONS or (config.max_side and max(size) > config.max_side):
        return False
    return config.encode == "original" or _EXTENSIONS[file_format] == _EXTENSIONS[config.encode.upper()]


def _encode(image: Image.Image, rgb: Image.Image, config: PictureConfig) -> tuple[bytes, str, Image.Image]:
    """The picture encoded anew, upright and no longer than `max_side`; drops all metadata.

    With `encode: original`, PNG where JPEG cannot hold it, else JPEG.
    """
    # 16 bits of grey are as `to_rgb` makes them: Pillow would clip them.
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    transparent = has_alpha and not image.mode.startswith("I") and config.encode != "jpeg"
    kept = upright(image).convert("RGBA") if transparent else rgb
    kept.info.clear()  # Pillow would write the comment and the colour profile of the original again
    if config.max_side and max(kept.size) > config.max_side:
        kept.thumbnail((config.max_side, config.max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if transparent or config.encode == "png" or max(kept.size) > _JPEG_SIDE:
        kept.save(file, "PNG")
        return file.getvalue(), "PNG", to_rgb(kept)
    kept.save(file, "JPEG", quality=config.quality)
    return file.getvalue(), "JPEG", to_rgb(kept)
