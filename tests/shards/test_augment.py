"""Bytes → pixels for a student: shapes, what decides the variation, and that each variation does what it says."""

import io
from dataclasses import replace

import numpy as np
import pytest
from keras_resize import resized
from made_pictures import encode, jpeg, png, textured
from PIL import Image

from shards.augment import AugmentConfig, Interpolation, eval_dtype, eval_pixels, train_pixels
from shards.errors import ConfigError

WHITE, RED = (255, 255, 255), (255, 0, 0)
NO_AUGMENTATION = AugmentConfig(min_crop_area=1, max_crop_aspect=1, flip=False)
EVERYTHING = AugmentConfig(
    min_crop_area=0.2, max_shift=0.1, max_rotation=20, color_jitter=0.4, grayscale=0.3, rand_augment=0.9, erasing=0.5
)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (1, 1), (3, 300), (300, 3), (7, 7)])
@pytest.mark.parametrize("size", [16, 33])
def test_pixels_have_the_shape_and_type_that_models_take(shape: tuple[int, int], size: int) -> None:
    content = png(*shape)
    for made in (
        eval_pixels(content, size),
        eval_pixels(content, size, 0.5),
        train_pixels(content, size, EVERYTHING, np.random.default_rng(0)),
        train_pixels(content, size, NO_AUGMENTATION, np.random.default_rng(0)),
    ):
        assert made.shape == (3, size, size)
        assert made.dtype == np.uint8


def test_training_pixels_depend_on_the_generator_alone() -> None:
    content = png()
    made = [train_pixels(content, 32, EVERYTHING, np.random.default_rng(seed)) for seed in range(20)]
    np.random.seed(3)
    again = [train_pixels(content, 32, EVERYTHING, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(one, other) for one, other in zip(made, again, strict=True))
    assert len({one.tobytes() for one in made}) == 20


def test_without_augmentation_a_training_picture_is_the_evaluation_picture() -> None:
    content = png(50, 50)
    trained = train_pixels(content, 32, NO_AUGMENTATION, np.random.default_rng(0))
    assert np.array_equal(trained, eval_pixels(content, 32))


def test_half_of_the_pictures_are_mirrored() -> None:
    content = png(50, 50)
    flipping = replace(NO_AUGMENTATION, flip=True)
    plain = eval_pixels(content, 32)
    mirror = plain[:, :, ::-1]
    mirrored = 0
    for seed in range(200):
        made = train_pixels(content, 32, flipping, np.random.default_rng(seed))
        is_plain = np.array_equal(made, plain)
        assert is_plain or np.array_equal(made, mirror)
        mirrored += not is_plain
    assert 70 < mirrored < 130


def test_what_comes_into_view_by_shift_and_rotation_is_white() -> None:
    black = encode(Image.new("RGB", (64, 64)), "PNG")
    moving = replace(NO_AUGMENTATION, max_shift=0.2, max_rotation=30)
    made = [train_pixels(black, 32, moving, np.random.default_rng(seed)) for seed in range(20)]
    assert all((picture.max(axis=0) == picture.min(axis=0)).all() for picture in made)
    assert sum(picture.max() == 255 for picture in made) > 15


def test_grayscale_takes_the_colours_of_its_share_of_the_pictures() -> None:
    def is_grey(picture: np.ndarray) -> bool:
        return bool((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all())

    for share, least, most in ((0.0, 0, 0), (0.3, 30, 90), (1.0, 200, 200)):
        config = replace(NO_AUGMENTATION, grayscale=share)
        made = [train_pixels(png(), 16, config, np.random.default_rng(seed)) for seed in range(200)]
        assert least <= sum(map(is_grey, made)) <= most


def test_erasing_fills_a_rectangle_of_2_to_33_percent_with_noise() -> None:
    white = encode(Image.new("RGB", (64, 64), WHITE), "PNG")
    config = replace(NO_AUGMENTATION, erasing=1)
    for seed in range(50):
        changed = (train_pixels(white, 64, config, np.random.default_rng(seed)) != 255).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / 64**2
        assert 0.01 < area < 0.36
        assert changed.sum() > 0.9 * area * 64**2


def test_a_crop_keeps_at_least_its_share_of_the_picture() -> None:
    # A ramp from 0 to 255: the span of what is left is the share of the width that the crop kept.
    ramp = encode(Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))), "PNG")
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
    content = encode(image, "PNG")
    # The filter reaches a pixel over the edge of the square.
    inner = eval_pixels(content, 10)[:, 1:-1, 1:-1]
    assert (inner == np.array([0, 0, 255], dtype=np.uint8)[:, None, None]).all()


def test_squashing_keeps_the_whole_picture_in_training_and_evaluation() -> None:
    image = Image.new("RGB", (90, 30), RED)
    image.paste((0, 0, 255), (30, 0, 60, 30))
    content = encode(image, "PNG")
    config = replace(NO_AUGMENTATION, squash=True)
    evaluated = eval_pixels(content, 30, squash=True)
    assert np.array_equal(train_pixels(content, 30, config, np.random.default_rng(0)), evaluated)
    red, blue = np.array(RED)[:, None], np.array((0, 0, 255))[:, None]
    # A third each; the filter reaches over the edges.
    assert (evaluated[:, 15, 1:8] == red).all()
    assert (evaluated[:, 15, 12:18] == blue).all()
    assert (evaluated[:, 15, 22:29] == red).all()
    # A third of each side is the blue square, and nothing else.
    assert (eval_pixels(content, 30, 1 / 3, squash=True)[:, 4:-4, 4:-4] == blue[:, None]).all()


def test_crops_and_squashing_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="has no effect with squash"):
        AugmentConfig(squash=True, max_crop_aspect=1)


def test_evaluation_may_leave_out_a_border() -> None:
    image = Image.new("RGB", (100, 100), RED)
    image.paste((0, 0, 255), (20, 20, 80, 80))
    content = encode(image, "PNG")
    inner = eval_pixels(content, 16, crop_share=0.5)
    assert (inner[2] == 255).all()
    assert (inner[0] == 0).all()
    assert eval_pixels(content, 16)[0, 0, 0] == 255


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


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_that_pillow_would_resize_to(interpolation: Interpolation) -> None:
    image = textured(300, 200)
    by_pillow = image.crop((50, 0, 250, 200)).resize((64, 64), Image.Resampling[interpolation.upper()])
    made = eval_pixels(encode(image, "PNG"), 64, interpolation=interpolation)
    assert made.dtype == eval_dtype(interpolation) == np.uint8
    assert np.abs(made.astype(int) - np.asarray(by_pillow).transpose(2, 0, 1)).max() <= 2


@pytest.mark.parametrize("shape", [(600, 450), (450, 600), (100, 71), (64, 64), (5, 400), (1, 1)])
@pytest.mark.parametrize("size", [64, 97])
def test_aliased_bilinear_pixels_are_those_of_keras_unrounded(shape: tuple[int, int], size: int) -> None:
    image = textured(*shape)
    expected = resized(np.asarray(image), size).transpose(2, 0, 1)
    made = eval_pixels(encode(image, "PNG"), size, squash=True, interpolation="aliased_bilinear")
    assert made.dtype == eval_dtype("aliased_bilinear") == np.float32
    assert np.abs(made - expected).max() < 0.02
    if min(shape) > 2 * size:
        # With antialiasing they are others.
        assert np.abs(made - eval_pixels(encode(image, "PNG"), size, squash=True, interpolation="bilinear")).max() > 10


def test_a_large_jpeg_is_decoded_in_full_where_the_four_nearest_pixels_count() -> None:
    content = encode(textured(1600, 1200), "JPEG", quality=90)
    expected = resized(np.asarray(Image.open(io.BytesIO(content))), 64).transpose(2, 0, 1)
    made = eval_pixels(content, 64, squash=True, interpolation="aliased_bilinear")
    assert np.abs(made - expected).max() < 0.05


def test_a_part_of_a_picture_is_scaled_so_too() -> None:
    image = textured(300, 200)
    expected = resized(np.asarray(image)[50:150, 100:200], 32).transpose(2, 0, 1)
    made = eval_pixels(encode(image, "PNG"), 32, 0.5, interpolation="aliased_bilinear")
    assert np.abs(made - expected).max() < 0.02


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "aliased_bilinear"])
def test_a_whole_training_picture_is_scaled_as_in_evaluation(interpolation: Interpolation) -> None:
    content = encode(textured(300, 200), "PNG")
    config = replace(NO_AUGMENTATION, squash=True)
    trained = train_pixels(content, 64, config, np.random.default_rng(0), interpolation)
    assert trained.dtype == np.uint8
    assert np.array_equal(trained, eval_pixels(content, 64, squash=True, interpolation=interpolation).round())


def test_a_large_jpeg_looks_as_if_it_was_decoded_whole() -> None:
    content = jpeg(1600, 1200)
    whole = encode(Image.open(io.BytesIO(content)), "PNG")
    for seed in range(5):
        generators = np.random.default_rng(seed), np.random.default_rng(seed)
        small, large = (
            train_pixels(one, 64, EVERYTHING, generator)
            for one, generator in zip((content, whole), generators, strict=True)
        )
        assert np.abs(small.astype(int) - large).mean() < 3
