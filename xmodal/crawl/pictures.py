"""What a fetched answer is: a picture to keep, or the reason why not. Its content decides, never its name or header."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from shards.checks import require_range
from shards.decode import FORMATS, is_sideways, to_rgb, upright
from shards.errors import ConfigError
from xmodal.crawl.perceptual_hash import MAX_SIDE as PDQ_SIDE
from xmodal.crawl.perceptual_hash import pdq_hash
from xmodal.crawl.scaling import scaled_down

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens nothing larger: twice its `MAX_IMAGE_PIXELS`."""
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
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
    check: Literal["decode", "header"] = "decode"
    """`decode` reads every picture to its end, so that a damaged or cut off one is refused; `header` only looks at its
    format and size."""
    hashes: bool = True
    """Store sha256 and PDQ of every picture. Without them, curation finds no duplicates and refuses the dataset."""
    encode: Literal["original", "png", "jpeg"] = "original"
    """`original` keeps a picture's bytes where it can. `png` and `jpeg` store all in that one format: Hugging Face
    datasets refuses tars whose samples differ in their members, and vanilla webdataset does not decode WebP."""

    def __post_init__(self) -> None:
        require_range(self, "max_pixels", least=1, most=PILLOW_MAX_PIXELS)
        require_range(self, "min_side", least=1)
        require_range(self, "max_side", least=0)
        require_range(self, "quality", least=1, most=100)
        if self.check == "header" and self.hashes:
            raise ConfigError("check", self.check, "needs hashes: false, since hashing decodes every picture")


class RefusedPictureError(Exception):
    """The bytes are no picture that we keep. `reason` is one of the codes of the failures file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was checked as the config says."""

    content: bytes
    extension: str
    sha256: str
    """Of `content`, hex; empty where the config wants no hashes."""
    pdq: str
    """Perceptual hash of what a viewer sees (upright, transparency on white), 256 bits, hex; or empty likewise."""
    width: int
    """Pixels, as a viewer sees it: after the EXIF orientation."""
    height: int


def check_picture(content: bytes, config: PictureConfig) -> Picture:
    """Check a picture and describe it; its original bytes are kept where format and size allow.

    Raises RefusedPictureError with the reason `empty`, `not_an_image`, `too_many_pixels`, `too_small` or `undecodable`.
    """
    with _opened(content, config) as image:
        if not _is_kept(image, config):
            return _encode(image, config)
        return _described(content, image, config) if config.check == "header" else _decoded(content, image, config)


def check_header(content: bytes, config: PictureConfig) -> Picture | None:
    """What `check_picture` says, where that takes no longer than a look at the header; else None."""
    if config.check != "header":
        return None
    with _opened(content, config) as image:
        return _described(content, image, config) if _is_kept(image, config) else None


@contextmanager
def _opened(content: bytes, config: PictureConfig) -> Iterator[Image.Image]:
    """A picture of which the header was read. Whatever fails with it is refused."""
    if not content:
        raise RefusedPictureError("empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image.size, config)
            yield image
    except RefusedPictureError:
        raise
    except Image.DecompressionBombError:
        raise RefusedPictureError("too_many_pixels") from None
    except Image.UnidentifiedImageError:
        raise RefusedPictureError("not_an_image") from None
    except MemoryError:
        raise  # says nothing of the picture
    except Exception:  # noqa: BLE001  Pillow raises whatever its work on hostile bytes trips over
        raise RefusedPictureError("undecodable") from None


def _check_size(size: tuple[int, int], config: PictureConfig) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise RefusedPictureError("too_many_pixels")
    if min(width, height) < config.min_side:
        raise RefusedPictureError("too_small")


def _is_kept(image: Image.Image, config: PictureConfig) -> bool:
    """Whether a picture's own bytes are stored."""
    extension = _EXTENSIONS.get(image.format or "")
    if extension is None or (config.max_side and max(image.size) > config.max_side):
        return False
    return config.encode == "original" or extension == _EXTENSIONS[config.encode.upper()]


def _described(content: bytes, image: Image.Image, config: PictureConfig) -> Picture:
    """By its header alone."""
    # A PNG that does not say before its pixels how it is turned would be decoded to be asked.
    is_asked = image.format != "PNG" or "exif" in image.info
    return _picture(content, image, _turned(image.size, image) if is_asked else image.size, pdq="")


def _decoded(content: bytes, image: Image.Image, config: PictureConfig) -> Picture:
    """Decoded to its end. Of a JPEG every bit is read, but no more pixels are made of them than a hash takes."""
    size = image.size
    image.draft("L", _scaled(size, PDQ_SIDE if config.hashes else 1))
    image.load()
    if not config.hashes:
        return _picture(content, image, _turned(size, image), pdq="")
    pdq = pdq_hash(upright(image) if _is_plain_grey(image) else to_rgb(image))
    return _picture(content, image, _turned(size, image), pdq, hashlib.sha256(content).hexdigest())


def _picture(content: bytes, image: Image.Image, size: tuple[int, int], pdq: str, sha256: str = "") -> Picture:
    width, height = size
    extension = _EXTENSIONS[image.format or ""]
    return Picture(content=content, extension=extension, sha256=sha256, pdq=pdq, width=width, height=height)


def _is_plain_grey(image: Image.Image) -> bool:
    return image.mode == "L" and "transparency" not in image.info


def _turned(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """A size as a viewer of the picture sees it."""
    return size[::-1] if is_sideways(image) else size


def _scaled(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """A size scaled down to a longest side."""
    factor = min(1.0, max_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _encode(image: Image.Image, config: PictureConfig) -> Picture:
    """The picture encoded anew, upright and no longer than `max_side`; drops all metadata.

    With `encode: original`, PNG where JPEG cannot hold it, else JPEG.
    """
    size = _scaled(image.size, config.max_side) if config.max_side else image.size
    # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, still larger than this.
    image.draft(None, size)
    image.load()
    size = _turned(size, image)
    # 16 bits of grey are as `to_rgb` makes them: Pillow would clip them.
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    transparent = has_alpha and not image.mode.startswith("I") and config.encode != "jpeg"
    kept = upright(image).convert("RGBA") if transparent else to_rgb(image)
    kept.info.clear()  # Pillow would write the comment and the colour profile of the original again
    if kept.size != size:
        kept = scaled_down(kept, size)
    file = io.BytesIO()
    as_png = transparent or config.encode == "png" or max(size) > _JPEG_SIDE
    if as_png:
        kept.save(file, "PNG")
    else:
        kept.save(file, "JPEG", quality=config.quality)
    content = file.getvalue()
    return Picture(
        content=content,
        extension="png" if as_png else "jpg",
        sha256=hashlib.sha256(content).hexdigest() if config.hashes else "",
        pdq=pdq_hash(to_rgb(kept)) if config.hashes else "",
        width=kept.width,
        height=kept.height,
    )
