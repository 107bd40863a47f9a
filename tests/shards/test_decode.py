"""Bytes → pixels: what people expect of orientation, transparency, CMYK, 16 bits and animation."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from made_pictures import (
    GARBAGE,
    HTML,
    SVG,
    animation,
    cmyk_jpeg,
    encode,
    jpeg,
    pixels,
    png,
    png_that_claims,
    sixteen_bit_png,
)
from PIL import Image

from shards.decode import Box, UndecodableImageError, decode_crop, decode_rgb, to_rgb

WHITE, RED = (255, 255, 255), (255, 0, 0)
ORIENTATION, MAKE = 0x0112, 0x010F


def difference(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def with_orientation(orientation: int, file_format: str = "JPEG") -> bytes:
    """A picture that looks like `pixels()` once it is turned as its tag says."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = pixels()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if orientation in back:
        image = image.transpose(back[orientation])
    options = {"lossless": True} if file_format == "WEBP" else {}
    return encode(image, file_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_upright_as_its_exif_says(orientation: int, file_format: str) -> None:
    decoded = decode_rgb(with_orientation(orientation, file_format))
    assert decoded.size == (64, 48)
    assert difference(decoded, pixels()) < 4


def test_a_turned_tiff_is_upright() -> None:
    decoded = decode_rgb(encode(pixels().transpose(Image.Transpose.ROTATE_90), "TIFF", tiffinfo={ORIENTATION: 6}))
    assert decoded.tobytes() == pixels().tobytes()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tag_of_the_wrong_type_elsewhere_in_the_exif_does_not_spoil_a_picture(orientation: int) -> None:
    # Cameras and editors write such tags; Pillow reads them, and fails to write them again.
    entries = struct.pack("<HHII", MAKE, 3, 2, 0x00010001) + struct.pack("<HHII", ORIENTATION, 3, 1, orientation)
    entries += struct.pack("<HHII", 0x011A, 2, 4, 0x31313131) + struct.pack("<HHII", 0x8769, 3, 1, 7)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 4) + entries + bytes(4)
    image = pixels().transpose(Image.Transpose.ROTATE_90) if orientation == 6 else pixels()
    decoded = decode_rgb(encode(image, "JPEG", exif=exif))
    assert difference(decoded, pixels()) < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0" + GARBAGE[:300], b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*"])
def test_exif_that_is_garbage_does_not_spoil_a_picture(exif: bytes) -> None:
    assert difference(decode_rgb(encode(pixels(), "JPEG", exif=exif)), pixels()) < 4


def half_transparent(mode: str) -> Image.Image:
    """Left half red (or black), opaque; right half the same colour, wholly transparent."""
    image = Image.new("RGBA", (40, 20), (*RED, 255))
    image.paste((*RED, 0), (20, 0, 40, 20))
    return image.convert(mode)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(file_format: str) -> None:
    decoded = decode_rgb(encode(half_transparent("RGBA"), file_format, lossless=True))
    assert decoded.mode == "RGB"
    assert decoded.getpixel((5, 5)) == RED
    assert decoded.getpixel((35, 5)) == WHITE


def test_what_is_half_transparent_is_half_white() -> None:
    decoded = decode_rgb(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"))
    assert decoded.getpixel((4, 4)) == (127, 127, 127)


def test_transparent_grey_is_white() -> None:
    image = Image.new("LA", (40, 20), (30, 255))
    image.paste((30, 0), (20, 0, 40, 20))
    decoded = decode_rgb(encode(image, "PNG"))
    assert decoded.getpixel((5, 5)) == (30, 30, 30)
    assert decoded.getpixel((35, 5)) == WHITE


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["one index", "an opacity for each index"])
def test_the_transparent_colours_of_a_palette_are_white(transparency: int | bytes) -> None:
    image = Image.new("P", (40, 20), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.paste(1, (20, 0, 40, 20))
    decoded = decode_rgb(encode(image, "PNG", transparency=transparency))
    assert decoded.getpixel((5, 5)) == RED
    assert decoded.getpixel((35, 5)) == WHITE


def test_the_transparent_colour_of_a_gif_is_white() -> None:
    image = Image.new("P", (40, 20), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.paste(1, (20, 0, 40, 20))
    assert decode_rgb(encode(image, "GIF", transparency=1)).getpixel((35, 5)) == WHITE


@pytest.mark.parametrize(("mode", "transparent"), [("RGB", (255, 0, 0)), ("L", 76)])
def test_the_one_transparent_colour_of_a_picture_without_alpha_is_white(mode: str, transparent: Any) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste((0, 0, 255), (20, 0, 40, 20))
    decoded = decode_rgb(encode(image.convert(mode), "PNG", transparency=transparent))
    assert decoded.getpixel((5, 5)) == WHITE
    assert decoded.getpixel((35, 5)) != WHITE


def test_a_picture_that_is_turned_and_transparent_is_both() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    decoded = decode_rgb(encode(half_transparent("RGBA"), "PNG", exif=exif))
    assert decoded.size == (20, 40)
    assert decoded.getpixel((5, 5)) == RED
    assert decoded.getpixel((5, 35)) == WHITE


def test_cmyk_has_the_colours_that_it_was_made_of() -> None:
    assert difference(decode_rgb(cmyk_jpeg()), pixels()) < 4


def test_grey_is_three_equal_channels() -> None:
    decoded = np.asarray(decode_rgb(encode(pixels().convert("L"), "JPEG")))
    assert decoded.shape == (48, 64, 3)
    assert (decoded[..., 0] == decoded[..., 1]).all()
    assert (decoded[..., 0] == decoded[..., 2]).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_mid_grey_stays_mid_grey(file_format: str) -> None:
    grey = Image.fromarray(np.full((10, 10), 0x8000, dtype=np.uint16))
    assert decode_rgb(encode(grey, file_format)).getpixel((5, 5)) == (128, 128, 128)


def test_a_sixteen_bit_ramp_stays_a_ramp() -> None:
    ramp = np.asarray(decode_rgb(sixteen_bit_png()))[0, :, 0]
    assert ramp[0] == 0
    assert ramp[-1] == 255
    assert (np.diff(ramp.astype(int)) >= 0).all()
    assert len(np.unique(ramp)) == 64


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(file_format: str) -> None:
    image = Image.new("1", (20, 10), 1)
    image.paste(0, (0, 0, 10, 10))
    decoded = decode_rgb(encode(image, file_format))
    assert decoded.getpixel((2, 2)) == (0, 0, 0)
    assert decoded.getpixel((15, 2)) == WHITE


@pytest.mark.parametrize(("file_format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_frame_counts(file_format: str, options: dict[str, Any]) -> None:
    content = animation(file_format, **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3  # type: ignore[attr-defined]
    assert difference(decode_rgb(content), pixels(seed=0)) < (12 if file_format == "GIF" else 1)


def test_of_a_phones_two_picture_jpeg_the_first_counts() -> None:
    content = encode(pixels(seed=0), "MPO", save_all=True, append_images=[pixels(seed=1)])
    assert difference(decode_rgb(content), pixels(seed=0)) < 4


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_undecodable(file_format: str, share: float) -> None:
    content = encode(pixels(200, 150), file_format)
    with pytest.raises(UndecodableImageError):
        decode_rgb(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", GARBAGE, HTML, SVG, b"\xff\xd8\xff\xe0" + GARBAGE, b"\x89PNG\r\n\x1a\n" + GARBAGE, b"BM" + GARBAGE],
    ids=["nothing", "a byte", "garbage", "html", "svg", "like jpeg", "like png", "like bmp"],
)
def test_what_is_no_picture_is_undecodable(content: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        decode_rgb(content)


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "PCX", "EPS"])
def test_a_format_that_is_not_allowed_is_undecodable(file_format: str) -> None:
    with pytest.raises(UndecodableImageError):
        decode_rgb(encode(pixels(), file_format))


def test_a_picture_that_claims_to_be_huge_is_undecodable() -> None:
    with pytest.raises(UndecodableImageError):
        decode_rgb(png_that_claims(60_000, 60_000))


@pytest.mark.parametrize(
    ("image", "tag", "tag_type"),
    [(pixels(), 0x0111, 11), (pixels().quantize(16), 0x0140, 4)],
    ids=["a fraction as offset", "a palette of large numbers"],
)
def test_a_tiff_with_a_tag_of_the_wrong_type_is_undecodable(image: Image.Image, tag: int, tag_type: int) -> None:
    content = bytearray(encode(image, "TIFF"))
    entry = content.index(struct.pack("<H", tag), struct.unpack_from("<I", content, 4)[0])
    struct.pack_into("<H", content, entry + 2, tag_type)
    with pytest.raises(UndecodableImageError):
        decode_rgb(bytes(content))


def test_a_damaged_picture_raises_nothing_but_that_it_is_undecodable(capfd: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "camera"
    palette = pixels().quantize(16)
    whole = [
        encode(pixels(), "JPEG", exif=exif),
        encode(pixels(), "WEBP", exif=exif),
        encode(palette, "PNG", transparency=bytes([0, 128, 255]), exif=exif),
        encode(palette, "GIF"),
        encode(palette, "BMP"),
        *(encode(image, "TIFF", tiffinfo={ORIENTATION: 6}) for image in (pixels(), palette)),
        *(animation(file_format) for file_format in ("PNG", "GIF")),
    ]
    random = np.random.default_rng(0)
    undecodable = 0
    for _ in range(4000):
        content = bytearray(whole[random.integers(len(whole))])
        for _ in range(random.integers(1, 8)):
            content[random.integers(min(len(content), 250))] = random.integers(256)
        try:
            assert decode_rgb(bytes(content), min_side=10).mode == "RGB"
        except UndecodableImageError:
            undecodable += 1
    assert 0 < undecodable < 4000
    capfd.readouterr()  # libtiff prints what it finds


@pytest.mark.parametrize("min_side", [1, 20, 50, 100, 149, 151, 400, 5000])
@pytest.mark.parametrize(("width", "height"), [(800, 600), (601, 1203), (300, 2400)])
def test_a_jpeg_decoded_for_a_least_side_keeps_it(width: int, height: int, min_side: int) -> None:
    content = jpeg(width, height)
    decoded = decode_rgb(content, min_side=min_side)
    assert min(decoded.size) >= min(min_side, width, height)
    assert decoded.width / decoded.height == pytest.approx(width / height, rel=0.05)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_a_least_side_changes_no_other_format(file_format: str) -> None:
    content = encode(pixels(400, 300), file_format)
    assert decode_rgb(content, min_side=10).tobytes() == decode_rgb(content).tobytes()


def test_a_turned_jpeg_decoded_for_a_least_side_is_upright() -> None:
    assert decode_rgb(with_orientation(6), min_side=24).size == (32, 24)


def test_rgb_pictures_pass_unchanged() -> None:
    assert to_rgb(pixels()).tobytes() == pixels().tobytes()
    assert decode_rgb(png()).tobytes() == pixels().tobytes()


def part_of(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """What a crop of the whole picture, decoded at its full size, looks like at another size."""
    return np.asarray(image.crop(box).resize(size, Image.Resampling.BOX))


@pytest.mark.parametrize("size", [30, 64, 100, 149, 151, 400, 5000])
@pytest.mark.parametrize("box", [(0, 0, 800, 600), (100, 40, 400, 340), (650, 10, 790, 500)])
def test_a_part_of_a_large_jpeg_is_decoded_just_larger_than_asked_for(
    box: tuple[int, int, int, int], size: int
) -> None:
    content = jpeg(800, 600)
    part = decode_crop(content, lambda whole: box, size)
    height, width, _ = part.shape
    shortest = min(box[2] - box[0], box[3] - box[1])
    assert min(height, width) >= min(size, shortest) - 1
    assert min(height, width) <= max(2 * size, shortest // 8) + 1 or shortest < 2 * size
    assert width / height == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=0.05)
    assert difference(part[:, :, :3], part_of(decode_rgb(content), box, (width, height))) < 3


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_part_is_one_of_the_upright_picture(orientation: int, file_format: str) -> None:
    sizes = []
    box = (4, 2, 40, 30)

    def choose(whole: tuple[int, int]) -> Box:
        sizes.append(whole)
        return box

    content = with_orientation(orientation, file_format)
    part = decode_crop(content, choose, 64)
    assert sizes == [pixels().size]
    assert difference(part[:, :, :3], part_of(decode_rgb(content), box, (36, 28))) == 0


@pytest.mark.parametrize("make", [cmyk_jpeg, lambda: encode(pixels().convert("L"), "JPEG")], ids=["cmyk", "grey"])
def test_a_part_decoded_small_keeps_the_colours_of_cmyk_and_grey(make: Any) -> None:
    content = make()
    part = decode_crop(content, lambda whole: (0, 0, *whole), 16)
    assert part.shape[:2] == (24, 32)
    assert difference(part[:, :, :3], part_of(decode_rgb(content), (0, 0, 64, 48), (32, 24))) < 4


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.2, 0.2), (63.9, 47.9, 64.0, 48.0), (0.4, 0.4, 63.6, 47.6)])
def test_a_part_has_at_least_a_pixel_and_ends_with_the_picture(box: Box) -> None:
    height, width, channels = decode_crop(png(), lambda whole: box, 8).shape
    assert 1 <= height <= 48
    assert 1 <= width <= 64
    assert channels in (3, 4)


def test_a_part_of_a_picture_whose_memory_is_in_pieces_is_the_same() -> None:
    # Pillow's memory of a picture is in pieces of 16 MiB.
    image = pixels().resize((2400, 1900), Image.Resampling.NEAREST)
    box = (37, 1800, 401, 1895)
    large, small = (
        decode_crop(encode(one, "PNG"), lambda whole, shift=shift: (37, 1800 - shift, 401, 1895 - shift), 8)
        for one, shift in ((image, 0), (image.crop((0, 1700, 2400, 1900)), 1700))
    )
    assert (large.shape[2], small.shape[2]) == (3, 4)
    assert np.array_equal(large, small[:, :, :3])
    assert np.array_equal(large, np.asarray(image.crop(box)))


@pytest.mark.parametrize("content", [b"", GARBAGE, jpeg()[:400], png()[:100]])
def test_a_part_of_what_is_no_whole_picture_is_undecodable(content: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        decode_crop(content, lambda whole: (0, 0, *whole), 8)
