"""What the distance finds: copies of many kinds, and look-alikes that are none. `pytest -rP` shows the shares."""

import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import optional_data
import pytest
from known_relations import CHANGED, RECOMPRESSED, RESIZED, Change, packed_hash
from made_pictures import encode, textured
from PIL import Image, ImageFilter, ImageOps

from xmodal.crawl.pictures import PictureConfig, check_picture
from xmodal.curation.near_duplicates import MAX_DISTANCE, near_groups, pack_hashes

PICTURES = optional_data.FOLDER / "mvsa/images"
NUM_CHANGED = 200
"""Of the pictures of MVSA, so many are changed in every way."""


def recall(originals: Sequence[bytes], changes: Mapping[str, Change]) -> dict[str, float]:
    """The share of the copies of each kind that are near to their original. Prints it."""
    near: dict[str, list[bool]] = {name: [] for name in changes}
    for content in originals:
        original = packed_hash(content)
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert("RGB")
        for name, change in changes.items():
            near[name].append(np.bitwise_count(packed_hash(change(pixels)) ^ original).sum() <= MAX_DISTANCE)
    shares = {name: float(np.mean(found)) for name, found in near.items()}
    for name, share in shares.items():
        print(f"{name}: {share:.1%} found")  # noqa: T201  what docs/near_duplicates.md quotes
    return shares


@pytest.fixture(scope="module")
def made() -> list[bytes]:
    return [encode(textured(800, 600, seed), "JPEG", quality=92) for seed in range(12)]


@pytest.mark.parametrize("changes", [RESIZED, RECOMPRESSED], ids=["resized", "recompressed"])
def test_copies_of_another_size_or_quality_are_found(made, changes):
    shares = recall(made, changes)
    assert min(shares.values()) >= 0.95


def test_grey_copies_and_most_watermarked_ones_are_found_and_cropped_ones_are_not(made):
    shares = recall(made, CHANGED)
    assert shares["grey"] == 1
    assert shares["watermark"] >= 0.8
    assert shares["5 % cut off each side"] == 0


def look_alikes(content: bytes) -> list[bytes]:
    """Of the colours, the composition or the subject of a picture, and no copies of it."""
    with Image.open(io.BytesIO(content)) as image:
        others = [ImageOps.mirror(image), image.rotate(90, expand=True), ImageOps.invert(image)]
        blurred = image.filter(ImageFilter.GaussianBlur(image.width / 8))
        texture = textured(image.width, image.height, seed=1000 + len(content))
        others.append(Image.blend(blurred, texture, 0.6))
        return [encode(other, "JPEG", quality=92) for other in others]


def test_look_alikes_are_not_taken_for_copies(made):
    pictures = [picture for content in made for picture in (content, *look_alikes(content))]
    groups = near_groups(np.concatenate([packed_hash(content) for content in pictures]))
    assert groups.tolist() == list(range(len(pictures)))


@optional_data.needs("mvsa/images")
def test_real_photos_are_told_apart_and_their_equals_found():
    contents = [path.read_bytes() for path in sorted(PICTURES.iterdir())]
    packed = pack_hashes(check_picture(content, PictureConfig()).pdq for content in contents)
    groups = near_groups(packed)
    first, second = np.triu_indices(len(contents), 1)
    merged = groups[first] == groups[second]
    _, numbers = np.unique([hashlib.sha256(content).hexdigest() for content in contents], return_inverse=True)
    equal = numbers[first] == numbers[second]
    found = f"{equal.sum()} pairs with equal bytes; {merged[~equal].sum()} of {(~equal).sum()} others merged"
    print(found)  # noqa: T201  as above
    assert equal.sum() >= 54
    assert merged[equal].all()
    assert merged[~equal].mean() <= 0.001


@optional_data.needs("mvsa/images")
def test_copies_of_real_photos_are_found():
    paths = sorted(PICTURES.iterdir())
    places = np.random.default_rng(0).choice(len(paths), NUM_CHANGED, replace=False)
    originals = [paths[place].read_bytes() for place in places]
    recompressed, resized = recall(originals, RECOMPRESSED), recall(originals, RESIZED)
    assert min(recompressed.values()) >= 0.95
    assert np.mean([*recompressed.values(), *resized.values()]) >= 0.95
    # These pictures have 272 pixels at most; PDQ is unsteady where it has fewer than its own 512.
    assert min(resized.values()) >= 0.8
    changed = recall(originals, CHANGED)
    assert changed["grey"] >= 0.95
    assert changed["watermark"] >= 0.9
