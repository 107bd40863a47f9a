import hashlib
import io

import made_pictures as made
import numpy as np
import pytest
from PIL import Image

from shards.decode import decode_rgb
from shards.errors import ConfigError
from xmodal.crawl.perceptual_hash import pdq_hash
from xmodal.crawl.pictures import PictureConfig, RefusedPictureError, check_header, check_picture

CONFIG = PictureConfig(max_side=256)


def refusal(content: bytes, config: PictureConfig = CONFIG) -> str:
    with pytest.raises(RefusedPictureError) as caught:
        check_picture(content, config)
    return caught.value.reason


def reopened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("content", "extension"),
    [
        (made.jpeg(), "jpg"),
        (made.jpeg(progressive=True), "jpg"),
        (made.cmyk_jpeg(), "jpg"),
        (made.encode(made.pixels().convert("L"), "JPEG"), "jpg"),
        (made.png(), "png"),
        (made.transparent_palette_png(), "png"),
        (made.sixteen_bit_png(), "png"),
        (made.encode(made.pixels().convert("1"), "PNG"), "png"),
        (made.encode(made.pixels().convert("LA"), "PNG"), "png"),
        (made.encode(made.pixels(), "WEBP"), "webp"),
        (made.animation("WEBP"), "webp"),
        (made.animation("PNG"), "png"),
        (made.encode(made.pixels(), "MPO"), "jpg"),
    ],
)
def test_a_picture_within_the_limits_keeps_its_bytes(content, extension):
    picture = check_picture(content, CONFIG)
    assert picture.content == content
    assert picture.extension == extension
    assert picture.sha256 == hashlib.sha256(content).hexdigest()
    assert (picture.width, picture.height) == (64, 48)
    assert len(bytes.fromhex(picture.pdq)) == 32


@pytest.mark.parametrize(
    ("content", "extension"),
    [
        (made.encode(made.pixels(), "BMP"), "jpg"),
        (made.encode(made.pixels(), "TIFF"), "jpg"),
        (made.encode(made.pixels().convert("CMYK"), "TIFF"), "jpg"),
        (made.encode(made.pixels().convert("F"), "TIFF"), "jpg"),
        (made.encode(made.pixels().convert("LAB"), "TIFF"), "jpg"),
        (made.encode(made.pixels().convert("RGBA"), "TIFF"), "png"),
        (made.encode(made.pixels(), "GIF"), "jpg"),
        (made.animation("GIF"), "jpg"),
        (made.encode(made.pixels().quantize(16), "GIF", transparency=0), "png"),
    ],
)
def test_other_formats_are_encoded_anew(content, extension):
    picture = check_picture(content, CONFIG)
    assert picture.extension == extension
    assert reopened(picture.content).format == {"jpg": "JPEG", "png": "PNG"}[extension]
    assert picture.sha256 == hashlib.sha256(picture.content).hexdigest()
    assert (picture.width, picture.height) == reopened(picture.content).size == (64, 48)


@pytest.mark.parametrize(
    "content",
    [
        made.jpeg(600, 300),
        made.png(600, 300),
        made.encode(made.pixels(600, 300), "WEBP"),
        made.encode(made.pixels(600, 300), "TIFF"),
        made.sixteen_bit_png(600, 300),
        made.sixteen_bit_png(600, 300, transparency=5),
        made.encode(made.pixels(600, 300).quantize(16), "PNG", transparency=0),
        made.encode(made.pixels(600, 300).convert("L"), "PNG", transparency=3),
        made.encode(made.pixels(600, 300).convert("RGBA"), "WEBP"),
        made.encode(made.pixels(600, 300).convert("CMYK"), "JPEG"),
    ],
)
def test_a_picture_with_a_longer_side_is_scaled_down_to_the_limit(content):
    picture = check_picture(content, CONFIG)
    assert (picture.width, picture.height) == (256, 128)
    assert reopened(picture.content).size == (256, 128)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_all_pictures_may_be_stored_in_one_format(kind):
    config = PictureConfig(encode=kind, max_side=256)
    extension = {"png": "png", "jpeg": "jpg"}[kind]
    original = {"png": made.png(), "jpeg": made.jpeg()}[kind]
    assert check_picture(original, config).content == original
    for content in (made.jpeg(), made.png(600, 300), made.transparent_palette_png(), made.animation("WEBP")):
        picture = check_picture(content, config)
        assert picture.extension == extension
        assert reopened(picture.content).format == kind.upper()


@pytest.mark.parametrize("max_side", [0, 2048])
@pytest.mark.parametrize("file_format", ["BMP", "PNG", "TIFF"])
def test_a_picture_of_an_extreme_shape_is_kept(file_format, max_side):
    # JPEG, which others are encoded as, ends at 65,500 pixels a side.
    picture = check_picture(made.encode(made.pixels(70_000, 16), file_format), PictureConfig(max_side=max_side))
    assert picture.width == (max_side or 70_000)


def test_with_no_longest_side_every_size_keeps_its_bytes():
    content = made.jpeg(600, 300)
    assert check_picture(content, PictureConfig(max_side=0)).content == content


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_width_and_height_are_those_that_a_viewer_sees(file_format):
    content = made.encode(made.pixels(64, 48), file_format, exif=made.turned_exif())
    picture = check_picture(content, CONFIG)
    assert picture.content == content
    assert (picture.width, picture.height) == (48, 64)


@pytest.mark.parametrize(
    ("image", "file_format"),
    [
        (made.pixels(600, 300), "JPEG"),
        (made.pixels(600, 300), "PNG"),
        (made.pixels(600, 300).convert("RGBA"), "PNG"),
        (made.pixels(600, 300).convert("RGBA"), "WEBP"),
        (made.pixels(600, 300).convert("RGBA"), "TIFF"),
    ],
)
def test_a_turned_picture_is_upright_after_it_was_encoded_anew(image, file_format):
    content = made.encode(image, file_format, exif=made.turned_exif())
    picture = check_picture(content, CONFIG)
    seen = decode_rgb(picture.content)
    assert (picture.width, picture.height) == seen.size == (128, 256)
    red, green, blue = seen.getpixel((118, 10))  # red was in the upper left corner before the turn
    assert red > 200
    assert max(green, blue) < 80
    assert not reopened(picture.content).getexif()


def test_what_is_encoded_anew_carries_no_metadata():
    exif = made.turned_exif()
    exif[0x010F] = "the maker of the camera"
    for content in (
        made.jpeg(600, 300, exif=exif, comment=b"home address"),
        made.encode(made.pixels(600, 300).convert("RGBA"), "PNG", exif=exif),
    ):
        again = check_picture(content, CONFIG).content
        assert b"camera" in content
        assert b"camera" not in again
        assert b"address" not in again


def test_transparency_outlives_encoding_anew():
    image = made.pixels(600, 300).convert("RGBA")
    image.putalpha(0)
    for content in (made.encode(image, "PNG"), made.encode(image, "WEBP", exact=True)):
        again = check_picture(content, CONFIG)
        assert again.extension == "png"
        assert reopened(again.content).getchannel("A").getextrema() == (0, 0)


def test_sixteen_bits_are_scaled_down_not_clipped():
    for content in (made.sixteen_bit_png(600, 300), made.sixteen_bit_png(600, 300, transparency=5)):
        again = check_picture(content, CONFIG)
        values = np.asarray(reopened(again.content).convert("L"), dtype=float)
        assert values.mean() == pytest.approx(127, abs=3)


def test_encoding_anew_gives_the_same_bytes_each_time():
    content = made.png(600, 300)
    assert check_picture(content, CONFIG) == check_picture(content, CONFIG)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (made.GARBAGE, "not_an_image"),
        (made.HTML, "not_an_image"),
        (made.SVG, "not_an_image"),
        (b"\x00" * 1000, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not_an_image"),
        (made.encode(made.pixels(), "ICO"), "not_an_image"),
        (made.encode(made.pixels(), "JPEG2000"), "not_an_image"),
        (made.jpeg()[:400], "undecodable"),
        (made.jpeg()[:-400], "undecodable"),
        (made.png()[:-100], "undecodable"),
        (made.encode(made.pixels(), "WEBP")[:-100], "undecodable"),
        (made.animation("GIF")[:2000], "undecodable"),
        (made.png_that_claims(64, 64), "undecodable"),
        (made.png_that_claims(10_000, 10_000), "too_many_pixels"),
        (made.png_that_claims(100_000, 100_000), "too_many_pixels"),
        (made.png_that_claims(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (made.png(1, 1), "too_small"),
        (made.jpeg(500, 15), "too_small"),
        (made.encode(Image.new("RGB", (1, 1)), "GIF"), "too_small"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_picture_to_keep_has_its_reason(content, reason):
    assert refusal(content) == reason


def test_a_jpeg_that_is_cut_off_anywhere_is_refused():
    whole = made.jpeg()
    assert {refusal(whole[:length]) for length in range(1, len(whole) - 2, 50)} <= {"not_an_image", "undecodable"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_pictures_with_changed_bytes_are_kept_or_refused_and_nothing_else(file_format):
    whole = made.encode(made.pixels(), file_format)
    random = np.random.default_rng(3)
    reasons = set()
    for _ in range(60):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            changed[place] = random.integers(256)
        try:
            check_picture(bytes(changed), CONFIG)
        except RefusedPictureError as error:
            reasons.add(error.reason)
    assert reasons <= {"not_an_image", "undecodable", "too_many_pixels", "too_small"}


def decodes(content: bytes) -> bool:
    """Whether Pillow makes all pixels of a JPEG."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.load()
    except Exception:  # noqa: BLE001  whatever it trips over
        return False
    return True


def is_kept(content: bytes, config: PictureConfig) -> bool:
    try:
        check_picture(content, config)
    except RefusedPictureError:
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_jpeg_of_which_few_pixels_are_made_is_refused_where_all_of_them_could_not_be(options, hashes):
    # Only what is needed is turned into pixels, but all is read: damage anywhere is found all the same.
    whole = made.jpeg(1200, 900, **options)
    config = PictureConfig(hashes=hashes, max_side=0, min_side=1)
    random = np.random.default_rng(5)
    variants = [whole[:length] for length in random.integers(700, len(whole), 60)]
    for _ in range(150):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 30)):
            changed[place] = random.integers(256)
        # Not the size in its header: it would be another picture.
        changed[:700] = whole[:700]
        variants.append(bytes(changed))
    outcomes = [decodes(content) for content in variants]
    assert [is_kept(content, config) for content in variants] == outcomes
    assert set(outcomes) == {True, False}


@pytest.mark.parametrize(
    ("content", "width", "height"),
    [
        (made.jpeg(), 64, 48),
        (made.jpeg()[:-300], 64, 48),
        (made.png()[:-100], 64, 48),
        (made.jpeg(exif=made.turned_exif()), 48, 64),
        (made.encode(made.pixels(), "WEBP", exif=made.turned_exif()), 48, 64),
        (made.png(exif=made.turned_exif()), 48, 64),
    ],
)
def test_by_its_header_a_picture_is_kept_as_it_is(content, width, height):
    config = PictureConfig(check="header", hashes=False)
    picture = check_header(content, config)
    assert picture == check_picture(content, config)
    assert (picture.content, picture.width, picture.height) == (content, width, height)
    assert (picture.sha256, picture.pdq) == ("", "")


def test_by_its_header_it_is_refused_for_what_that_says():
    config = PictureConfig(check="header", hashes=False)
    for content, reason in ((b"", "empty"), (made.HTML, "not_an_image"), (made.png(1, 1), "too_small")):
        with pytest.raises(RefusedPictureError, match=reason):
            check_header(content, config)


def test_what_is_encoded_anew_is_decoded_whatever_the_check():
    config = PictureConfig(check="header", hashes=False, max_side=256)
    assert check_header(made.jpeg(600, 300), config) is None
    assert check_picture(made.jpeg(600, 300), config).width == 256
    assert refusal(made.jpeg(600, 300)[:-300], config) == "undecodable"


def test_without_hashes_a_picture_is_decoded_all_the_same():
    config = PictureConfig(hashes=False)
    picture = check_picture(made.jpeg(), config)
    assert (picture.sha256, picture.pdq) == ("", "")
    assert refusal(made.jpeg()[:-300], config) == "undecodable"
    assert refusal(made.png()[:-100], config) == "undecodable"


def test_hashes_by_the_header_alone_are_refused():
    with pytest.raises(ConfigError, match="check: 'header' needs hashes: false"):
        PictureConfig(check="header")


@pytest.mark.parametrize("size", [(1999, 1001), (1001, 1999), (513, 512), (4096, 301), (600, 450)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_picture_that_is_scaled_down_keeps_its_shape_and_its_look(size, file_format):
    config = PictureConfig(max_side=512, min_side=1)
    image = made.pixels(*size)
    picture = check_picture(made.encode(image, file_format), config)
    factor = 512 / max(size)
    expected = (round(size[0] * factor), round(size[1] * factor))
    assert (picture.width, picture.height) == expected
    seen = np.asarray(reopened(picture.content), dtype=float)
    wanted = np.asarray(image.resize(expected, Image.Resampling.BOX), dtype=float)
    assert np.abs(seen - wanted).mean() < 4


def test_the_limits_are_those_of_the_config():
    assert refusal(made.jpeg(64, 48), PictureConfig(max_pixels=64 * 48 - 1)) == "too_many_pixels"
    assert refusal(made.jpeg(64, 48), PictureConfig(min_side=49)) == "too_small"
    assert check_picture(made.jpeg(64, 48), PictureConfig(max_pixels=64 * 48, min_side=48, max_side=64))


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_near_duplicates_differ_in_few_bits_and_other_pictures_in_many():
    original = check_picture(made.jpeg(400, 300, seed=1), CONFIG)
    smaller = check_picture(made.jpeg(200, 150, seed=1, quality=40), CONFIG)
    other = check_picture(made.jpeg(400, 300, seed=2), CONFIG)
    assert bits_apart(original.pdq, smaller.pdq) <= 31
    assert bits_apart(original.pdq, other.pdq) > 31


def test_the_perceptual_hash_is_that_of_the_picture_as_seen():
    turned = check_picture(made.encode(made.pixels(64, 48), "PNG", exif=made.turned_exif()), CONFIG)
    upright = made.pixels(64, 48).transpose(Image.Transpose.ROTATE_270)
    assert bits_apart(turned.pdq, pdq_hash(upright)) == 0


@pytest.mark.parametrize("size", [(2000, 1500), (1100, 1000), (600, 450), (64, 48)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 50}], ids=str)
def test_the_hash_of_a_jpeg_of_which_few_pixels_were_made_is_that_of_the_whole(size, options):
    for seed in range(5):
        content = made.encode(made.textured(*size, seed), "JPEG", **options)
        assert bits_apart(check_picture(content, PictureConfig()).pdq, pdq_hash(decode_rgb(content))) <= 8


@pytest.mark.parametrize(
    "changes", [{"max_pixels": 0}, {"min_side": 0}, {"max_side": -1}, {"quality": 0}, {"quality": 101}], ids=str
)
def test_a_limit_out_of_range_is_told_by_its_name(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}: {value}"):
        PictureConfig(**changes)
