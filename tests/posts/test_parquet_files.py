import os
import random
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from xmodal.posts.parquet_files import check_parquet, parquet_posts
from xmodal.posts.post import Media, Post


def write(folder, columns: dict, **settings) -> str:
    path = str(folder / "posts.parquet")
    pq.write_table(pa.table(columns), path, **settings)
    return path


def two(**changes) -> dict:
    return {"id": [1, 2], "text": ["a", "b"], "media": [["a.jpg"], ["b.jpg"]]} | changes


def told(path: str) -> list[tuple[int, str]]:
    return [(row, found.id if isinstance(found, Post) else found.reason) for row, found in parquet_posts(path)]


def test_columns_are_found_by_their_names_and_others_passed_over(tmp_path):
    path = write(tmp_path, {"likes": [1, 2], "lang": ["en", None], "kind": ["quote", None]} | two(author=[7, 8]))
    assert list(parquet_posts(path)) == [
        (1, Post(id="1", text="a", media=(Media(url="a.jpg"),), lang="en", kind="quote", author="7")),
        (2, Post(id="2", text="b", media=(Media(url="b.jpg"),), author="8")),
    ]


@pytest.mark.parametrize(
    "cell",
    [
        ["a.jpg", "b.mp4"],
        [{"url": "a.jpg", "type": "photo"}, {"url": "b.mp4", "type": "video"}],
        '["a.jpg", {"url": "b.mp4", "type": "video"}]',
        "a.jpg b.mp4",
        b"a.jpg b.mp4",
    ],
    ids=lambda cell: str(cell)[:20],
)
def test_media_are_a_list_of_addresses_or_of_structs_or_text(tmp_path, cell):
    ((_, post),) = parquet_posts(write(tmp_path, {"id": ["1"], "text": ["a"], "media": [cell]}))
    assert [media.url for media in post.media] == ["a.jpg", "b.mp4"]
    if "video" in str(cell):
        assert [media.type for media in post.media] == ["photo", "video"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_become_iso_8601(tmp_path, unit):
    when = pa.array([datetime(2022, 4, 1, 12, 30, tzinfo=UTC), None], pa.timestamp(unit, "UTC"))
    posts = [found for _, found in parquet_posts(write(tmp_path, two(created_at=when)))]
    assert [post.created_at for post in posts] == ["2022-04-01T12:30:00+00:00", None]


def test_nanoseconds_are_cut_off(tmp_path):
    when = pa.array([1_648_816_200_123_456_789] * 2, pa.timestamp("ns"))
    ((_, post), _) = parquet_posts(write(tmp_path, two(created_at=when)))
    assert post.created_at == "2022-04-01T12:30:00.123456"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": [None, 2]}, "bad_post"),
        ({"id": [1.5, 2.5]}, "bad_post"),
        ({"text": [None, "b"]}, "no_text"),
        ({"text": [b"caf\xe9", b"b"]}, "bad_row"),
        ({"media": [None, ["b.jpg"]]}, "no_media"),
        ({"media": [[], ["b.jpg"]]}, "no_media"),
        ({"media": ["[", "b.jpg"]}, "bad_row"),
        ({"kind": ["retweet", "post"]}, "bad_post"),
    ],
    ids=str,
)
def test_a_broken_row_has_its_number_and_reason_and_costs_no_neighbour(tmp_path, changes, reason):
    found = told(write(tmp_path, two(**changes)))
    assert found[0] == (1, reason)
    assert found[1] == (2, "2" if "id" not in changes or changes["id"][1] == 2 else reason)


def test_text_that_is_no_utf8_in_a_column_that_says_so_costs_its_row_alone(tmp_path):
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (4).to_bytes(4, "little") + (5).to_bytes(4, "little"))
    broken = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"caf\xe9b"))
    assert told(write(tmp_path, two(text=broken))) == [(1, "bad_row"), (2, "2")]


def test_a_time_beyond_pythons_years_costs_its_row_alone_and_days_are_times_too(tmp_path):
    times = pa.array([1_600_000_000, 10**12], pa.timestamp("s"))
    assert told(write(tmp_path, two(created_at=times))) == [(1, "1"), (2, "bad_row")]
    ((_, found), _) = parquet_posts(write(tmp_path, two(created_at=pa.array([18_000, 18_001], pa.date32()))))
    assert found.created_at == "2019-04-14"


def test_row_groups_are_read_one_after_another(tmp_path):
    number = 5000
    columns = {"id": range(number), "text": ["a"] * number, "media": [["a.jpg"]] * number}
    path = write(tmp_path, columns, row_group_size=700)
    assert told(path) == [(row + 1, str(row)) for row in range(number)]


@pytest.mark.parametrize("row_group_size", [1000, None])
def test_memory_does_not_grow_with_the_file(tmp_path, row_group_size):
    noise = random.Random(0)
    texts = [noise.randbytes(500).hex() for _ in range(20_000)]
    columns = {"id": range(len(texts)), "text": texts, "media": [["a.jpg"]] * len(texts)}
    path = write(tmp_path, columns, row_group_size=row_group_size, use_dictionary=False)
    del texts, columns
    before = most = pa.total_allocated_bytes()
    for _ in parquet_posts(path):
        most = max(most, pa.total_allocated_bytes())
    assert most - before < os.path.getsize(path) / 2


def test_a_file_without_the_columns_is_an_error_that_names_them(tmp_path):
    path = write(tmp_path, {"id": [1], "words": ["a"]})
    for read in (check_parquet, lambda path: list(parquet_posts(path))):
        with pytest.raises(UserError, match=f"{path}: has no column text, media"):
            read(path)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_file_that_is_no_whole_parquet_is_an_error_that_names_it(tmp_path, damage):
    path = write(tmp_path, two(text=["a lovely day " * 100, "b"]), compression="gzip")
    content = (tmp_path / "posts.parquet").read_bytes()
    changed = content[:60] + b"\xff" * 20 + content[80:]
    (tmp_path / "posts.parquet").write_bytes({"cut": content[:-20], "changed": changed, "empty": b""}[damage])
    with pytest.raises(UserError, match="not a whole Parquet file") as caught:
        list(parquet_posts(path))
    assert path in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
