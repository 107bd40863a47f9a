"""The emoji set that ships with the demo."""

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "data" / "emoji"


def test_the_set_has_the_counts_that_its_readme_says(
    posts: list[dict[str, Any]], polarities: list[dict[str, str]]
) -> None:
    media = [medium["url"] for post in posts for medium in post["media"]]
    assert len(posts) == len({post["id"] for post in posts}) == 1911
    assert Counter(url.split("/")[0] for url in media) == {"twemoji": 1911, "fluent3d": 1852}
    assert len(polarities) == 798
    assert len({Path(row["path"]).stem for row in polarities}) == 399


def test_every_picture_of_a_post_exists_and_decodes(posts: list[dict[str, Any]]) -> None:
    sizes = {"twemoji": (64, 64), "fluent3d": (96, 96)}
    formats = {"twemoji": "PNG", "fluent3d": "WEBP"}
    for post in posts:
        for medium in post["media"]:
            style = medium["url"].split("/")[0]
            with Image.open(FOLDER / medium["url"]) as picture:
                picture.load()
                assert (picture.format, picture.size) == (formats[style], sizes[style]), medium["url"]


def test_every_picture_in_the_folders_belongs_to_a_post(posts: list[dict[str, Any]]) -> None:
    named = {medium["url"] for post in posts for medium in post["media"]}
    there = {
        path.relative_to(FOLDER).as_posix() for style in ("twemoji", "fluent3d") for path in (FOLDER / style).iterdir()
    }
    assert there == named


def test_every_post_has_a_name_keywords_and_twemoji_first(posts: list[dict[str, Any]]) -> None:
    for post in posts:
        name, _, keywords = post["text"].partition(": ")
        assert name, post
        assert keywords, post
        assert [medium["type"] for medium in post["media"]] == ["photo"] * len(post["media"])
        expected = [f"twemoji/{post['id']}.png", f"fluent3d/{post['id']}.webp"]
        assert [medium["url"] for medium in post["media"]] == expected[: len(post["media"])]
        assert (post["lang"], post["source"]) == ("en", "emoji")


def test_every_polarity_row_points_to_a_picture_of_a_post(
    posts: list[dict[str, Any]], polarities: list[dict[str, str]]
) -> None:
    ids = {post["id"] for post in posts}
    for row in polarities:
        assert (FOLDER / row["path"]).is_file(), row
        assert Path(row["path"]).stem in ids, row


def test_every_polarity_is_the_unsmoothed_mean_of_at_least_20_uses(polarities: list[dict[str, str]]) -> None:
    for row in polarities:
        negative, neutral, positive = (int(row[name]) for name in ("negative", "neutral", "positive"))
        uses = negative + neutral + positive
        assert uses >= 20, row
        assert row["score"] == str(round((positive - negative) / uses, 4)), row


def test_both_drawings_of_an_emoji_have_the_same_polarity(polarities: list[dict[str, str]]) -> None:
    values: dict[str, set[tuple[str, ...]]] = {}
    for row in polarities:
        values.setdefault(Path(row["path"]).stem, set()).add(
            (row["score"], row["negative"], row["neutral"], row["positive"])
        )
    assert all(len(of_one_emoji) == 1 for of_one_emoji in values.values())


def test_a_well_known_emoji_has_the_uses_that_the_paper_published(polarities: list[dict[str, str]]) -> None:
    tears_of_joy = next(row for row in polarities if row["path"] == "twemoji/1f602.png")
    assert tears_of_joy == {
        "path": "twemoji/1f602.png",
        "score": "0.221",
        "negative": "3614",
        "neutral": "4163",
        "positive": "6845",
    }


def test_the_set_is_small_enough_to_ship() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
