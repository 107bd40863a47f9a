"""Fixtures of the curation tests."""

from pathlib import Path

import pytest
from curated_posts import first_posts, second_posts
from curation_pictures import photo, photo_bytes, write_benchmark, write_dataset
from made_pictures import encode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets `one` and `two`, and a benchmark with a picture of the post a4."""
    folder = tmp_path_factory.mktemp("curate")
    write_dataset(folder / "one", first_posts())
    write_dataset(folder / "two", second_posts())
    write_benchmark(folder / "bench", {"x.webp": encode(photo(5), "WEBP", quality=60), "y.jpg": photo_bytes(99)})
    return folder
