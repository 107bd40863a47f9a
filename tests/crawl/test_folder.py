import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import made_pictures as made
import pytest

from shards.errors import UserError
from xmodal.crawl.fetch import FetchResult
from xmodal.crawl.folder import read_in_order
from xmodal.crawl.pictures import PictureConfig
from xmodal.crawl.reasons import REASONS

MAX_BYTES = 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture, beside another one that it must not be left for."""
    inside = tmp_path / "media"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.jpg").write_bytes(made.jpeg(seed=1))
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "secret.jpg").write_bytes(made.jpeg(seed=2))
    return inside


def read(folder: Path, *paths: str, pictures: PictureConfig | None = None) -> list[FetchResult]:
    async def collect() -> list[FetchResult]:
        return [one async for one in read_in_order(paths, str(folder), MAX_BYTES, pictures or PictureConfig())]

    return asyncio.run(collect())


def told(folder: Path, path: str) -> tuple[str | None, bool]:
    (result,) = read(folder, path)
    assert (result.picture is None) == (result.reason is not None)
    assert result.url == path
    assert result.reason is None or result.reason in REASONS
    return result.reason, result.retryable


def test_pictures_come_in_the_order_asked_for_checked_and_described(folder):
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(made.jpeg(seed=number))
    paths = [f"{number}.jpg" for number in reversed(range(30))] + ["none.jpg", "sub/a.jpg"]
    results = read(folder, *paths)
    assert [result.url for result in results] == paths
    assert [result.picture.content for result in results[:30]] == [made.jpeg(seed=n) for n in reversed(range(30))]
    assert [result.reason for result in results[30:]] == ["no_such_file", None]
    assert (results[0].picture.width, results[0].picture.height, len(results[0].picture.pdq)) == (64, 48, 64)
    (small,) = read(folder, "0.jpg", pictures=PictureConfig(max_side=32))
    assert max(small.picture.width, small.picture.height) == 32


@pytest.mark.parametrize(
    "path",
    ["../media2/secret.jpg", "sub/../../media2/secret.jpg", "link.jpg", "linked/secret.jpg", "/etc/passwd", ".."],
)
def test_no_path_leads_out_of_the_folder(folder, path):
    (folder / "link.jpg").symlink_to(folder.parent / "media2" / "secret.jpg")
    (folder / "linked").symlink_to(folder.parent / "media2")
    assert told(folder, path) == ("outside_folder", False)


def test_paths_and_links_within_the_folder_are_followed_and_so_is_a_link_to_it(folder):
    (folder / "link.jpg").symlink_to(folder / "sub" / "a.jpg")
    (folder.parent / "elsewhere").symlink_to(folder)
    for path in ("link.jpg", "sub/../sub/./a.jpg", str(folder / "sub" / "a.jpg")):
        assert told(folder, path) == (None, False)
        assert told(folder.parent / "elsewhere", path) == (None, False)


@pytest.mark.parametrize(
    "path",
    ["none.jpg", "", "  ", ".", "sub", "sub/a.jpg/b.jpg", "a\0b.jpg", "\ud83d.jpg", "x" * 5000, "pipe", "loop",
     "https://example.org/a.jpg"],
)  # fmt: skip
def test_what_is_no_file_is_told(folder, path):
    os.mkfifo(folder / "pipe")  # opened to be read, it would be waited for without end
    (folder / "loop").symlink_to("loop")
    assert told(folder, path) == ("no_such_file", False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (made.GARBAGE, "not_an_image"),
        (bytes(MAX_BYTES + 1), "too_large"),
        (made.png(1, 1), "too_small"),
    ],
)
def test_contents_are_checked_as_fetched_ones_are(folder, content, reason):
    (folder / "b.jpg").write_bytes(content)
    assert told(folder, "b.jpg") == (reason, False)


def test_a_folder_that_is_not_there_is_no_failure_of_its_pictures(folder):
    with pytest.raises(UserError, match="none: no such folder"):
        read(folder / "none", "a.jpg")


def test_who_stops_early_reads_no_further(folder):
    num_begun = 0

    class Paths(list[str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal num_begun
            for path in super().__iter__():
                num_begun += 1
                yield path

    async def first() -> FetchResult:
        results = read_in_order(Paths(["sub/a.jpg"] * 1000), str(folder), MAX_BYTES, PictureConfig())
        result = await anext(results)
        await results.aclose()
        return result

    assert asyncio.run(first()).picture
    assert num_begun <= 10
