import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_records import json_values

from xmodal.posts.post import (
    MAX_ENCODED_ID_LENGTH,
    UNREADABLE,
    Media,
    Post,
    UnreadablePostError,
    encode_id,
    parse_post,
    post_record,
)

PHOTO = {"url": "https://example.org/a.jpg", "type": "photo"}


def record(**changes):
    return {"id": "17", "text": "a lovely day", "media": [PHOTO]} | changes


def refusal(value) -> UnreadablePostError:
    with pytest.raises(UnreadablePostError) as caught:
        parse_post(value)
    return caught.value


def test_a_whole_record_becomes_a_post():
    post = parse_post(record(lang="en", created_at="2020-01-02", author="ada", source="dump", likes=3))
    assert post == Post(
        id="17",
        text="a lovely day",
        media=(Media(url="https://example.org/a.jpg", type="photo"),),
        lang="en",
        created_at="2020-01-02",
        author="ada",
        source="dump",
    )


def test_a_label_comes_along_and_what_is_none_is_left_out():
    assert parse_post(record(label="negative")).label == (1, 0, 0)
    assert parse_post(record(label=[0.2, 0.3, 0.5])).label == (0.2, 0.3, 0.5)
    assert parse_post(record(label="spam")).label is None
    post = parse_post(record(label=1))
    assert parse_post(json.loads(json.dumps(post_record(post)))) == post


def test_an_id_may_be_a_whole_number_even_zero():
    assert parse_post(record(id=1234567890123456789)).id == "1234567890123456789"
    assert parse_post(record(id=0)).id == "0"


@pytest.mark.parametrize("bad_id", [None, "", True, 1.5, ["17"], {"$oid": "17"}], ids=repr)
def test_an_id_of_another_type_is_a_bad_post(bad_id):
    assert refusal(record(id=bad_id)).reason == "bad_post"


def test_an_id_too_long_for_a_file_name_is_a_bad_post():
    assert parse_post(record(id="x" * MAX_ENCODED_ID_LENGTH)).id == "x" * MAX_ENCODED_ID_LENGTH
    assert refusal(record(id="x" * (MAX_ENCODED_ID_LENGTH + 1))).reason == "bad_post"
    assert refusal(record(id="é" * 40)).reason == "bad_post"  # six characters each in a file name


@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_a_post_without_text_is_told_so_with_its_id(text):
    error = refusal(record(text=text))
    assert (error.reason, error.post_id) == ("no_text", "17")


@pytest.mark.parametrize("media", [None, []])
def test_a_post_without_media_is_told_so_with_its_id(media):
    error = refusal(record(media=media))
    assert (error.reason, error.post_id) == ("no_media", "17")


@pytest.mark.parametrize(
    "changes",
    [
        {"text": 5},
        {"text": ["a"]},
        {"media": "https://example.org/a.jpg"},
        {"media": {"url": "https://example.org/a.jpg"}},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_a_bad_post_with_its_id(changes):
    error = refusal(record(**changes))
    assert (error.reason, error.post_id) == ("bad_post", "17")


@pytest.mark.parametrize("value", [None, 5, "text", [record()], True])
def test_a_record_that_is_no_object_is_a_bad_post(value):
    assert refusal(value).reason == "bad_post"


def test_the_error_never_shows_the_text():
    for changes in ({"media": None}, {"media": "lovely"}, {"id": None}):
        assert "lovely" not in str(refusal(record(**changes)))


def test_media_may_be_bare_urls_and_have_other_types():
    post = parse_post(record(media=["a.jpg", {"url": "b.mp4", "type": "video"}, {"url": "c", "type": 5}, {"url": "d"}]))
    assert [(media.url, media.type) for media in post.media] == [
        ("a.jpg", "photo"),
        ("b.mp4", "video"),
        ("c", "unknown"),
        ("d", "photo"),
    ]


@pytest.mark.parametrize("broken", [None, 5, [], {"type": "photo"}, {"url": 5}], ids=repr)
def test_a_broken_entry_of_media_keeps_its_place_and_loses_no_neighbour(broken):
    post = parse_post(record(media=["a.jpg", broken, "b.jpg"]))
    assert [media.url for media in post.media] == ["a.jpg", "", "b.jpg"]


@pytest.mark.parametrize("odd", [["en"], True, {"name": "x"}], ids=repr)
def test_a_field_that_a_post_can_do_without_loses_no_post(odd):
    post = parse_post(record(lang=odd, author=odd, source="test"))
    assert (post.lang, post.author, post.source) == (None, None, "test")


def test_halves_of_surrogate_pairs_are_replaced_so_that_everything_can_be_written():
    post = parse_post(json.loads(r'{"id": "a\ud83d", "text": "b\ude00", "media": ["c\ud800"], "lang": "d\udfff"}'))
    assert post == Post(id="a?", text="b?", media=(Media(url="c?"),), lang="d?")
    json.dumps(post.text, ensure_ascii=False).encode()


def test_numbers_in_optional_fields_become_text():
    post = parse_post(record(created_at=1577923200, author=42))
    assert (post.created_at, post.author) == ("1577923200", "42")


@pytest.mark.parametrize(
    ("post_id", "key"),
    [
        ("17", "17-0"),
        ("a.b", "a%2Eb-0"),
        ("../../etc/passwd", "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd-0"),
        ("a b", "a%20b-0"),
        ("é~", "%C3%A9%7E-0"),
        ("a_b-c", "a_b-c-0"),
        ("50%", "50%25-0"),
        ("\x00\n", "%00%0A-0"),
    ],
)
def test_a_key_holds_nothing_that_a_tar_or_webdataset_would_mistake(post_id, key):
    assert parse_post(record(id=post_id)).key(0) == key


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_other_ids_have_other_keys_of_safe_characters(one, other):
    assert re.fullmatch(r"[A-Za-z0-9_%-]*", encode_id(one))
    assert (encode_id(one) == encode_id(other)) == (one == other)


@pytest.mark.parametrize("kind", ["post", "repost", "reply", "quote"])
def test_the_kind_is_read_and_is_post_where_it_is_not_said(kind):
    assert parse_post(record(kind=kind)).kind == kind
    assert parse_post(record()).kind == parse_post(record(kind=None)).kind == "post"


@pytest.mark.parametrize("kind", ["retweet", "", 5, ["post"], True], ids=repr)
def test_a_kind_that_is_not_known_is_a_bad_post_since_rules_rely_on_it(kind):
    error = refusal(record(kind=kind))
    assert (error.reason, error.post_id) == ("bad_post", "17")
    assert error.detail.startswith("kind: ")


def test_whole_numbers_too_long_to_be_written_are_no_ids_and_no_times():
    assert refusal(record(id=10**5000)).reason == "bad_post"
    assert parse_post(record(created_at=10**5000)).created_at is None


def test_a_reason_that_is_not_documented_cannot_be_given():
    with pytest.raises(AssertionError):
        UnreadablePostError("some_reason", "id: why")


texts = st.text(st.characters(exclude_categories=["Cs"]))
kinds = st.sampled_from(["post", "repost", "reply", "quote"])
posts = st.builds(
    Post,
    id=texts.filter(lambda text: 0 < len(encode_id(text)) <= MAX_ENCODED_ID_LENGTH),
    text=texts.filter(str.strip),
    media=st.lists(st.builds(Media, url=texts, type=texts), min_size=1, max_size=3).map(tuple),
    kind=kinds,
    **dict.fromkeys(("lang", "created_at", "author", "source"), st.none() | texts),
)


@given(posts)
def test_a_post_written_as_a_line_and_read_again_is_the_same(post):
    assert parse_post(json.loads(json.dumps(post_record(post)))) == post


FIELDS = ("id", "text", "media", "lang", "author", "kind")


@given(st.fixed_dictionaries(dict.fromkeys(FIELDS, json_values)) | json_values)
def test_any_record_is_a_post_or_has_a_reason(value):
    try:
        post = parse_post(value)
    except UnreadablePostError as error:
        reason = error.reason
    else:
        reason = None
        assert post.text.strip()
        assert post.media
        assert post.kind in {"post", "repost", "reply", "quote"}
    assert reason in {None, "bad_post", "no_text", "no_media"} <= {None, *UNREADABLE}


@pytest.mark.parametrize(
    "changes", [{"text": None}, {"text": 5}, {"media": None}, {"media": "x"}, {"kind": "story"}], ids=str
)
def test_a_record_that_is_no_post_says_whose_it_is(changes):
    for author, expected in (("ada", "ada"), (17, "17"), (None, None), (["ada"], None)):
        with pytest.raises(UnreadablePostError) as told:
            parse_post(record(author=author, **changes))
        assert (told.value.post_id, told.value.author) == ("17", expected)
