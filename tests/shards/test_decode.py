"""Bytes → pixels: what people expect of orientation, transparency, CMYK, 16 bits and animation; and augmentation."""

import io
import struct
from dataclasses import replace
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

from shards.decode import AugmentConfig, UndecodableImageError, decode_rgb, eval_pixels, to_rgb, train_pixels
from shards.errors import ConfigError

WHITE, RED = (255, 255, 255), (255, 0, 0)
ORIENTATION, MAKE = 0x0112, 0x010F
NO_AUGMENTATION = AugmentConfig(min_crop_area=1, max_crop_aspect=1, flip=False)
EVERYTHING = AugmentConfig(
    min_crop_area=0.2, max_shift=0.1, max_rotation=20, color_jitter=0.4, grayscale=0.3, erasing=0.5
)


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


def test_a_large_jpeg_is_decoded_at_a_smaller_size_that_looks_the_same() -> None:
    content = jpeg(1600, 1200)
    small, whole = decode_rgb(content, min_side=224), decode_rgb(content)
    assert small.size == (400, 300)
    assert difference(eval_pixels(small, 224), eval_pixels(whole, 224)) < 2


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_a_least_side_changes_no_other_format(file_format: str) -> None:
    content = encode(pixels(400, 300), file_format)
    assert decode_rgb(content, min_side=10).tobytes() == decode_rgb(content).tobytes()


@pytest.mark.parametrize("make", [cmyk_jpeg, lambda: encode(pixels().convert("L"), "JPEG")], ids=["cmyk", "grey"])
def test_a_least_side_keeps_the_colours_of_cmyk_and_grey(make: Any) -> None:
    content = make()
    assert difference(eval_pixels(decode_rgb(content, min_side=16), 16), eval_pixels(decode_rgb(content), 16)) < 4


def test_a_turned_jpeg_decoded_for_a_least_side_is_upright() -> None:
    assert decode_rgb(with_orientation(6), min_side=24).size == (32, 24)


def test_rgb_pictures_pass_unchanged() -> None:
    assert to_rgb(pixels()).tobytes() == pixels().tobytes()
    assert decode_rgb(png()).tobytes() == pixels().tobytes()


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (1, 1), (3, 300), (300, 3), (7, 7)])
@pytest.mark.parametrize("size", [16, 33])
def test_pixels_have_the_shape_and_type_that_models_take(shape: tuple[int, int], size: int) -> None:
    image = pixels(*shape)
    for made in (
        eval_pixels(image, size),
        eval_pixels(image, size, 0.5),
        train_pixels(image, size, EVERYTHING, np.random.default_rng(0)),
        train_pixels(image, size, NO_AUGMENTATION, np.random.default_rng(0)),
    ):
        assert made.shape == (3, size, size)
        assert made.dtype == np.uint8
        assert made.flags.c_contiguous
        assert made.flags.writeable


def test_training_pixels_depend_on_the_generator_alone() -> None:
    image = pixels()
    made = [train_pixels(image, 32, EVERYTHING, np.random.default_rng(seed)) for seed in range(20)]
    np.random.seed(3)
    again = [train_pixels(image, 32, EVERYTHING, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(one, other) for one, other in zip(made, again, strict=True))
    assert len({one.tobytes() for one in made}) == 20


def test_training_leaves_the_picture_as_it_was() -> None:
    image = pixels()
    train_pixels(image, 32, replace(EVERYTHING, erasing=1), np.random.default_rng(0))
    assert image.tobytes() == pixels().tobytes()


def test_without_augmentation_a_training_picture_is_the_evaluation_picture() -> None:
    image = pixels(50, 50)
    trained = train_pixels(image, 32, NO_AUGMENTATION, np.random.default_rng(0))
    assert np.array_equal(trained, eval_pixels(image, 32))


def test_half_of_the_pictures_are_mirrored() -> None:
    image = pixels(50, 50)
    flipping = replace(NO_AUGMENTATION, flip=True)
    plain = eval_pixels(image, 32)
    mirrored = 0
    for seed in range(200):
        made = train_pixels(image, 32, flipping, np.random.default_rng(seed))
        is_plain = np.array_equal(made, plain)
        assert is_plain or np.array_equal(made, eval_pixels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 32))
        mirrored += not is_plain
    assert 70 < mirrored < 130


def test_what_comes_into_view_by_shift_and_rotation_is_white() -> None:
    black = Image.new("RGB", (64, 64))
    moving = replace(NO_AUGMENTATION, max_shift=0.2, max_rotation=30)
    made = [train_pixels(black, 32, moving, np.random.default_rng(seed)) for seed in range(20)]
    assert all((picture.max(axis=0) == picture.min(axis=0)).all() for picture in made)
    assert sum(picture.max() == 255 for picture in made) > 15


def test_grayscale_takes_the_colours_of_its_share_of_the_pictures() -> None:
    def is_grey(picture: np.ndarray) -> bool:
        return bool((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all())

    for share, least, most in ((0.0, 0, 0), (0.3, 30, 90), (1.0, 200, 200)):
        config = replace(NO_AUGMENTATION, grayscale=share)
        made = [train_pixels(pixels(), 16, config, np.random.default_rng(seed)) for seed in range(200)]
        assert least <= sum(map(is_grey, made)) <= most


def test_erasing_fills_a_rectangle_of_2_to_33_percent_with_noise() -> None:
    white = Image.new("RGB", (64, 64), WHITE)
    config = replace(NO_AUGMENTATION, erasing=1)
    for seed in range(50):
        changed = (train_pixels(white, 64, config, np.random.default_rng(seed)) != 255).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / 64**2
        assert 0.01 < area < 0.36
        assert changed.sum() > 0.9 * area * 64**2


def test_a_crop_keeps_at_least_its_share_of_the_picture() -> None:
    # A ramp from 0 to 255: the span of what is left is the share of the width that the crop kept.
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    config = replace(NO_AUGMENTATION, min_crop_area=0.5, max_crop_aspect=1.0)
    spans = [
        int(np.ptp(train_pixels(ramp, 64, config, np.random.default_rng(seed))[0].astype(int))) for seed in range(100)
    ]
    assert min(spans) > 255 * 0.5**0.5 - 8
    assert max(spans) > 240
    assert len(set(spans)) > 30


def test_evaluation_takes_the_middle_square() -> None:
    image = Image.new("RGB", (90, 30), RED)
    image.paste((0, 0, 255), (30, 0, 60, 30))
    # The filter reaches a pixel over the edge of the square.
    inner = eval_pixels(image, 10)[:, 1:-1, 1:-1]
    assert (inner == np.array([0, 0, 255], dtype=np.uint8)[:, None, None]).all()


def test_evaluation_may_leave_out_a_border() -> None:
    image = Image.new("RGB", (100, 100), RED)
    image.paste((0, 0, 255), (20, 20, 80, 80))
    inner = eval_pixels(image, 16, crop_share=0.5)
    assert (inner[2] == 255).all()
    assert (inner[0] == 0).all()
    assert eval_pixels(image, 16)[0, 0, 0] == 255


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_crop_area", 0),
        ("min_crop_area", 1.1),
        ("min_crop_area", -0.1),
        ("max_crop_aspect", 0.9),
        ("max_shift", -0.1),
        ("max_shift", 1.5),
        ("max_rotation", -1),
        ("max_rotation", 181),
        ("color_jitter", 2),
        ("grayscale", -1),
        ("erasing", 1.01),
    ],
)
def test_an_augmentation_that_cannot_be_is_an_error_that_names_it(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        AugmentConfig(**{name: value})
    assert caught.value.key == name
    assert str(value) in caught.value.what
