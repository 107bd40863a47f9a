import io
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from xmodal.posts.csv_files import MAX_ROW_CHARACTERS, csv_posts
from xmodal.posts.post import Media, Post

HEADER = b"id,text,media\n"


def read(content: bytes) -> list:
    return list(csv_posts(io.BytesIO(content), "posts.csv"))


def told(content: bytes) -> list[tuple[int, str]]:
    """Of each record its line, and its id or reason."""
    return [(line, found.id if isinstance(found, Post) else found.reason) for line, found in read(content)]


def test_columns_are_found_by_their_names_and_others_passed_over():
    content = b'likes,kind,media,text,id,lang\n3,reply,a.jpg b.png,"a day, a ""good"" one\nand long",17,en\n'
    ((line, post),) = read(content)
    media = (Media(url="a.jpg"), Media(url="b.png"))
    text = 'a day, a "good" one\nand long'
    assert (line, post) == (2, Post(id="17", text=text, media=media, lang="en", kind="reply"))


@pytest.mark.parametrize(
    ("cell", "media"),
    [
        ("a.jpg", [("a.jpg", "photo")]),
        (" a.jpg   b.jpg ", [("a.jpg", "photo"), ("b.jpg", "photo")]),
        ('"[""a.jpg"", {""url"": ""b.mp4"", ""type"": ""video""}]"', [("a.jpg", "photo"), ("b.mp4", "video")]),
    ],
)
def test_media_are_a_json_list_or_separated_by_spaces(cell, media):
    ((_, post),) = read(HEADER + b"1,a," + cell.encode() + b"\n")
    assert [(entry.url, entry.type) for entry in post.media] == media


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (b"1,a", "bad_row", "row: 2 fields, where the header has 3"),
        (b"1,a,b.jpg,c", "bad_row", "row: 4 fields, where the header has 3"),
        (b",a,b.jpg", "bad_post", "id"),
        (b"1,,b.jpg", "no_text", "text"),
        (b"1,a,", "no_media", "media"),
        (b'1,a,"[""b.jpg"""', "bad_row", "media"),
        (b"1,a,[" + b"[" * 50_000, "bad_row", "media"),
        (b"1,caf\xe9,b.jpg", "bad_row", "text: not UTF-8"),
        (b"\xff,a,b.jpg", "bad_row", "id: not UTF-8"),
        (b'1,"a" lovely day,b.jpg', "bad_row", "row: broken quotes"),
        (b'1,"a lovely day,b.jpg', "bad_row", "row: broken quotes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_broken_row_has_its_line_and_field_and_costs_no_neighbour(row, reason, field):
    before, (line, error), after = read(HEADER + b"0,a,a.jpg\n" + row + b'\n2,"a",a.jpg\n')
    assert (before[0], before[1].id) == (2, "0")
    assert (line, error.reason) == (3, reason)
    assert error.detail.startswith(field)
    assert "lovely" not in str(error)
    assert (after[0], after[1].id) == (4, "2")


def test_broken_bytes_in_a_column_that_is_not_read_do_no_harm():
    assert told(b"id,text,media,place\n1,a,a.jpg,caf\xe9\n") == [(2, "1")]


def test_a_quote_that_nobody_closes_costs_its_own_row_alone():
    rows = b"".join(b"%d,post %d,a.jpg\n" % (number, number) for number in range(1, 2 * MAX_ROW_CHARACTERS // 18))
    found = told(HEADER + b'0,"open,a.jpg\n' + rows)
    assert found[0] == (2, "bad_row")
    assert found[1:] == [(number + 2, str(number)) for number in range(1, len(found))]
    assert len(found) == 2 * MAX_ROW_CHARACTERS // 18


def test_a_field_larger_than_the_module_allows_by_default_is_read_and_one_without_end_passed_over():
    large, endless = b"x " * 100_000, b"x" * (3 * MAX_ROW_CHARACTERS)
    assert told(HEADER + b"1," + large + b",a.jpg\n2," + endless + b",a.jpg\n3,a,a.jpg\n") == [
        *((2, "1"), (3, "bad_row"), (4, "3"))
    ]


def test_an_endless_line_within_an_open_quote_costs_no_row_after_it():
    endless = b"x" * (3 * MAX_ROW_CHARACTERS)
    found = told(HEADER + b'1,"open,a.jpg\n2,' + endless + b",a.jpg\n3,a,a.jpg\n4,b,a.jpg\n")
    assert found == [(2, "bad_row"), (3, "bad_row"), (4, "3"), (5, "4")]


def test_nul_bytes_a_byte_order_mark_windows_lines_and_blank_lines_do_no_harm():
    content = b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n") + b"\r\n1,a\x00b,a.jpg\r\n\r\n2,b,b.jpg"
    assert told(content) == [(3, "1"), (5, "2")]
    assert read(content)[0][1].text == "a\x00b"


@pytest.mark.parametrize("content", [b"", b"id,words,media\n", b"1,a,a.jpg\n", b'"id,text\n', b"\x1f\x8b\x08"])
def test_a_file_without_the_columns_is_an_error_that_names_them(content):
    with pytest.raises(UserError, match=r"posts\.csv: has no column .*(text|media)") as caught:
        read(content)
    assert "id, text, media" in caught.value.remedy


def test_memory_does_not_grow_with_the_input():
    def peak_bytes(num_posts: int) -> int:
        file = io.BytesIO(HEADER + b"".join(b'%d,"post\n%d",a.jpg\n' % (n, n) for n in range(num_posts)))
        tracemalloc.start()
        try:
            for _ in csv_posts(file, "posts.csv"):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(8000) < 1.5 * peak_bytes(2000) + 100_000


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b'"', b",", b"\n", b"\r", b"1,a,a.jpg\n"])).map(b"".join))
def test_any_bytes_are_read_to_their_end(content):
    lines = [line for line, _ in read(HEADER + content + b"\n3,a,a.jpg\n")]
    assert lines == sorted(lines)
    assert told(HEADER + content + b"\n3,a,a.jpg\n")[-1][1] == "3"
