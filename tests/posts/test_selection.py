import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from xmodal.config import load_config
from xmodal.labelling.config import LabelConfig
from xmodal.posts.post import Media, Post
from xmodal.posts.readers import PostRecord
from xmodal.posts.selection import SelectConfig, rejection, selected

T4SA2 = Path(__file__).parents[2] / "configs" / "label" / "t4sa2.yaml"


def post(**changes) -> Post:
    plain = {"id": "1", "text": "one two three four five six", "media": (Media(url="a.jpg"),), "lang": "en"}
    return Post(**(plain | changes))


def reject(changes, **rules) -> str | None:
    return rejection(post(**changes), SelectConfig(**rules))


def test_by_default_every_post_is_kept():
    odd = post(text="x", lang=None, kind="repost", media=(Media(url="", type="video"),), created_at="once")
    assert rejection(odd, SelectConfig()) is None


@pytest.mark.parametrize(
    ("lang", "languages", "rule"),
    [
        ("en", ["en"], None),
        ("en-GB", ["en"], None),
        ("EN_us", ["en"], None),
        ("en", ["EN"], None),
        ("de", ["en", "de"], None),
        ("pt-BR", ["pt-BR"], None),
        ("pt", ["pt-BR"], "language"),
        ("eng", ["en"], "language"),
        ("de", ["en"], "language"),
        (None, ["en"], "language"),
        ("", ["en"], "language"),
        ("en", [], "language"),
    ],
)
def test_a_language_is_kept_with_all_its_regions(lang, languages, rule):
    assert reject({"lang": lang}, languages=languages) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [("a b c", 3), ("it's", 2), ("@ada http://t.co/x", 5), ("🌞 ❤", 0), ("größer als", 2), ("snake_case 42", 2)],
)
def test_words_are_counted_as_the_paper_does(text, words):
    assert reject({"text": text}, min_words=words) is None
    assert reject({"text": text}, min_words=words + 1) == "too_few_words"


@given(st.text(), st.integers(0, 12))
def test_more_than_five_words_means_six_and_more(text, min_words):
    # How the paper's crawler says it.
    is_kept = len(re.findall(r"\w+", text)) > min_words - 1
    assert (reject({"text": text}, min_words=min_words) is None) == is_kept


def test_a_post_with_any_photo_has_one():
    photo, video = Media(url="a.jpg"), Media(url="", type="video")
    assert reject({"media": (video, photo)}, photos_only=True) is None
    assert reject({"media": (video, Media(url="", type="missing"))}, photos_only=True) == "not_a_photo"


@pytest.mark.parametrize("kind", ["post", "repost", "reply", "quote"])
def test_a_kind_that_is_not_kept_is_named(kind):
    assert reject({"kind": kind}, kinds=[kind]) is None
    assert reject({"kind": kind}, kinds=[other for other in ("post", "repost") if other != kind]) == kind


@pytest.mark.parametrize(
    ("created_at", "rule"),
    [
        ("2022-03-31T23:59:59Z", "too_early"),
        ("2022-04-01T00:00:00.000Z", None),
        ("2022-04-01", None),
        ("2022-04-01T00:30:00+01:00", "too_early"),
        ("2022-06-30T23:59:59", None),
        ("2022-07-01T00:00:00Z", "too_late"),
        ("1650000000", None),
        ("1650000000.5", None),
        ("1750000000", "too_late"),
        ("last week", "no_date"),
        ("99999999999.9", "too_late"),
        (None, "no_date"),
        ("", "no_date"),
    ],
)
def test_a_time_is_kept_from_its_first_moment_until_before_its_last(created_at, rule):
    assert reject({"created_at": created_at}, created_after="2022-04-01", created_before="2022-07-01") == rule


def test_either_end_of_the_time_may_be_open():
    assert reject({"created_at": "1999-01-01"}, created_before="2022-07-01") is None
    assert reject({"created_at": "2030-01-01"}, created_after="2022-07-01T10:00:00Z") is None


@pytest.mark.parametrize(
    "rules", [{"min_words": -1}, {"kinds": []}, {"created_after": "soon"}, {"created_before": "2022-31-31"}], ids=str
)
def test_rules_that_cannot_be_are_refused(rules):
    with pytest.raises(ConfigError) as caught:
        SelectConfig(**rules)
    assert caught.value.key in rules


def test_what_is_left_out_is_counted_and_what_is_no_post_stays():
    found = [post(), post(lang="de"), None, post(kind="reply", lang="de"), post(lang="fr"), None]
    records = [PostRecord(line=number, post=found[number]) for number in range(6)]
    rejected = Counter()
    kept = selected(records, SelectConfig(languages=["en"], kinds=["post"]), rejected)
    assert [record.line for record in kept] == [0, 2, 5]
    assert rejected == {"language": 2, "reply": 1}


def test_the_papers_crawl_is_a_config_that_keeps_what_the_paper_kept():
    config = load_config(LabelConfig, ["--config", str(T4SA2)], command="xmodal label", description="")
    assert config.format == "x"
    assert config.teacher.kind == "transformers"
    assert config.teacher.model == "cardiffnlp/twitter-roberta-base-sentiment-latest"
    assert rejection(post(), config.select) is None
    assert [
        rejection(post(**changes), config.select)
        for changes in (
            {"lang": "fr"},
            {"text": "one two three four five"},
            {"media": (Media(url="", type="video"),)},
            {"media": (Media(url="", type="animated_gif"),)},
            {"kind": "repost"},
            {"kind": "reply"},
            {"kind": "quote"},
        )
    ] == ["language", "too_few_words", "not_a_photo", "not_a_photo", "repost", "reply", "quote"]


def test_with_photos_only_posts_that_have_no_media_are_left_out_too_and_other_broken_records_stay():
    records = [
        PostRecord(line=1, post=None, reason="no_media", post_id="1"),
        PostRecord(line=2, post=None, reason="bad_json"),
    ]
    rejected: Counter[str] = Counter()
    assert list(selected(records, SelectConfig(photos_only=True), rejected)) == records[1:]
    assert rejected == {"no_media": 1}
    assert list(selected(records, SelectConfig(), rejected)) == records
