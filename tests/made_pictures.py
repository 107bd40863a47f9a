"""Small pictures of every kind, made when asked for."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
TURN_RIGHT = 6
"""EXIF: turn by 90 degrees clockwise to see the picture upright."""


def pixels(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Smooth colours, other ones for each seed, red in the upper left corner."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 0, 0), (0, 0, max(1, width // 4), max(1, height // 4)))
    return image


def textured(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """As `pixels`, with detail of every scale: what is smooth is near to many another hash."""
    random = np.random.default_rng(seed)
    image = pixels(width, height, seed)
    for cells in (8, 16, 32, 64, 128):
        grain = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image = Image.blend(image, grain.resize((width, height), Image.Resampling.BICUBIC), 0.25)
    return image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def jpeg(width: int = 64, height: int = 48, seed: int = 0, **options: Any) -> bytes:
    return encode(pixels(width, height, seed), "JPEG", **options)


def png(width: int = 64, height: int = 48, seed: int = 0, **options: Any) -> bytes:
    return encode(pixels(width, height, seed), "PNG", **options)


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURN_RIGHT
    return exif


def cmyk_jpeg() -> bytes:
    return encode(pixels().convert("CMYK"), "JPEG")


def transparent_palette_png() -> bytes:
    return encode(pixels().quantize(16), "PNG", transparency=0)


def sixteen_bit_png(width: int = 64, height: int = 48, **options: Any) -> bytes:
    """A ramp over all 16 bits, left to right."""
    ramp = np.tile(np.linspace(0, 65535, width, dtype=np.uint16), (height, 1))
    return encode(Image.fromarray(ramp), "PNG", **options)


def animation(file_format: str, **options: Any) -> bytes:
    frames = [pixels(seed=seed) for seed in range(3)]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100, **options)


def png_that_claims(width: int, height: int) -> bytes:
    """A small file whose header says that it is huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><circle r="9"/></svg>'
HTML = b"<!DOCTYPE html><html><body>This picture has been removed.</body></html>"
GARBAGE = bytes(np.random.default_rng(7).integers(0, 256, 3000, dtype=np.uint8))
