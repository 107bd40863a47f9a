import gc
import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shards.errors import UserError
from xmodal.posts import json_files
from xmodal.posts.post import UNREADABLE
from xmodal.posts.readers import ReadShare, check_posts_file, labelled, posts_fingerprint, read_posts, units

SAMPLES = Path(__file__).parent / "samples"


def line(number: int) -> bytes:
    return json.dumps({"id": str(number), "text": f"post {number}", "media": [f"{number}.jpg"]}).encode() + b"\n"


LINES = b"".join(line(number) for number in range(100))

COMPRESS = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def write(folder, ending: str, content: bytes) -> str:
    path = folder / f"posts{ending}"
    path.write_bytes(content)
    return str(path)


def ids(path: str) -> list[str | None]:
    return [record.post.id if record.post else None for record in read_posts(path)]


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_format_holds_the_same_posts(tmp_path, ending):
    path = write(tmp_path, ending, COMPRESS[ending](LINES))
    assert ids(path) == [str(number) for number in range(100)]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_files_that_were_compressed_in_pieces_are_read_to_their_end(tmp_path, ending):
    compress = COMPRESS[ending]
    path = write(tmp_path, ending, compress(line(0) + line(1)) + compress(line(2)) + compress(b"") + compress(line(3)))
    assert ids(path) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("ending", COMPRESS)
def test_an_empty_file_holds_no_posts(tmp_path, ending):
    assert ids(write(tmp_path, ending, COMPRESS[ending](b""))) == []


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_compressed_file_that_is_cut_off_is_an_error_that_names_it(tmp_path, ending, share):
    whole = COMPRESS[ending](LINES)
    path = write(tmp_path, ending, whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="not a whole compressed file") as caught:
        ids(path)
    assert path in caught.value.what


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_with_changed_bytes_is_an_error_wherever_they_are(tmp_path, ending):
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    whole = (checked if ending == ".jsonl.zst" else gzip.compress)(LINES)
    for place in range(10, len(whole) - 8, 40):
        changed = whole[:place] + bytes(byte ^ 0xFF for byte in whole[place : place + 8]) + whole[place + 8 :]
        with pytest.raises(UserError, match="not a whole compressed file"):
            ids(write(tmp_path, ending, changed))


def test_a_zstd_file_with_the_long_window_of_public_dumps_is_read(tmp_path):
    # What `zstd --long=31` writes; a window as large as that is only ever taken up by a file as large.
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    content = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = write(tmp_path, ".jsonl.zst", content.compress(LINES) + content.flush())
    assert len(ids(path)) == 100


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_plain_file_that_is_named_as_if_it_were_compressed_is_an_error(tmp_path, ending):
    with pytest.raises(UserError, match="not a whole compressed file"):
        ids(write(tmp_path, ending, LINES))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"id": "1", "text": ', "bad_json"),
        (b"\x00\xff\xfe\x01\x02", "bad_json"),
        (b'{"id": "1", "text": "\xe9t\xe9", "media": ["a"]}', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"a":' * 100_000, "bad_json"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "bad_json"),
        (b"[]", "bad_post"),
        (b"null", "bad_post"),
        (b"NaN", "bad_post"),
        (b'"' + b"x" * 1_000_000 + b'"', "bad_post"),
        (b'{"text": "a", "media": ["a"]}', "bad_post"),
        (b'{"id": "1", "media": ["a"]}', "no_text"),
        (b'{"id": "1", "text": "a"}', "no_media"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_broken_line_has_its_reason_and_costs_no_neighbour(tmp_path, broken, reason):
    before, bad, after = read_posts(write(tmp_path, ".jsonl", line(0) + broken + b"\n" + line(2)))
    assert (before.post.id, before.line) == ("0", 1)
    assert (bad.post, bad.reason, bad.line) == (None, reason, 2)
    assert (after.post.id, after.line) == ("2", 3)


def test_what_could_not_be_read_names_its_file_line_and_field_and_shows_none_of_its_text(tmp_path):
    broken = [{"id": "1", "text": "lovely"}, {"text": "lovely"}, {"id": "1", "text": ["lovely"]}]
    write(tmp_path, ".jsonl", b"".join(json.dumps(record).encode() + b"\n" for record in broken) + b'{"lovely')
    records = list(read_posts(str(tmp_path)))
    assert [(record.file, record.line, record.detail.partition(":")[0]) for record in records] == [
        ("posts.jsonl", 1, "media"),
        ("posts.jsonl", 2, "id"),
        ("posts.jsonl", 3, "text"),
        ("posts.jsonl", 4, "line"),
    ]
    assert {record.reason for record in records} <= UNREADABLE.keys()
    assert "lovely" not in repr(records)


def test_a_line_too_long_to_be_held_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 100)
    content = line(0) + b'"' + b"x" * 1000 + b'"\n' + line(2) + b"y" * 200
    records = list(read_posts(write(tmp_path, ".jsonl", content)))
    assert [record.line for record in records] == [1, 2, 3, 4]
    assert [record.reason for record in records] == [None, "bad_json", None, "bad_json"]


def test_blank_lines_windows_lines_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(tmp_path):
    content = b"\xef\xbb\xbf" + line(0) + b"\n  \r\n" + line(1).replace(b"\n", b"\r\n") + line(2).rstrip()
    records = list(read_posts(write(tmp_path, ".jsonl", content)))
    assert [(record.post.id, record.line) for record in records] == [("0", 1), ("1", 4), ("2", 5)]


def test_a_missing_file_a_folder_and_another_format_are_told_in_two_lines(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "posts.txt").touch()
    for name, problem in [
        ("none.jsonl", "no such file"),
        ("none*.jsonl", "no such file"),
        ("folder.jsonl", "a folder without posts"),
        ("posts.txt", "format"),
    ]:
        with pytest.raises(UserError, match=problem) as caught:
            check_posts_file(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("posts_format", ["auto", "own"])
@pytest.mark.parametrize(
    ("name", "num_posts", "num_unreadable"),
    [
        ("x_pages.jsonl", 5, 3),
        ("x_stream.jsonl", 1, 1),
        ("mastodon_statuses.jsonl", 5, 3),
        ("mastodon_timeline.json", 3, 0),
        ("mastodon_stream.jsonl", 1, 1),
        ("bluesky_jetstream.jsonl", 5, 3),
        ("bluesky_thread.json", 3, 3),
        ("bluesky_feed.json", 2, 0),
    ],
)
def test_the_services_files_are_read_by_their_format_and_without_being_told(
    name, num_posts, num_unreadable, posts_format
):
    path = str(SAMPLES / name)
    posts_format = "auto" if posts_format == "auto" else name.partition("_")[0]
    check_posts_file(path, posts_format)
    records = list(read_posts(path, posts_format))
    assert sum(record.post is not None for record in records) == num_posts
    assert sum(record.reason is not None for record in records) == num_unreadable
    assert {record.post.source for record in records if record.post} == {name.partition("_")[0]}


def test_the_posts_of_a_page_share_its_line(tmp_path):
    records = list(read_posts(str(SAMPLES / "x_pages.jsonl")))
    assert {record.line for record in records} == {1}
    assert records[-1].post.id.endswith("8")


def test_the_first_line_that_is_json_tells_the_format(tmp_path):
    page = (SAMPLES / "x_pages.jsonl").read_bytes()
    records = list(read_posts(write(tmp_path, ".jsonl", b"\n{broken\n" + page)))
    assert [records[0].reason, records[1].post.source] == ["bad_json", "x"]


def test_an_empty_page_tells_no_format(tmp_path):
    page = (SAMPLES / "x_pages.jsonl").read_bytes()
    records = list(read_posts(write(tmp_path, ".jsonl", b"{}\n[]\n" + page)))
    assert [record.reason for record in records[:3]] == ["bad_post", "bad_post", None]
    assert records[2].post.source == "x"


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.zst"])
def test_a_json_document_is_one_record_or_a_list_of_them(tmp_path, ending):
    posts = [json.loads(line(number)) for number in range(3)]
    compress = COMPRESS[ending.replace(".json", ".jsonl")]
    assert ids(write(tmp_path, ending, compress(json.dumps(posts[0], indent=2).encode()))) == ["0"]
    path = write(tmp_path, ending, compress(json.dumps([*posts, 5], indent=2).encode()))
    assert [(record.line, record.reason) for record in read_posts(path)] == [
        *((1, None), (2, None), (3, None), (4, "bad_post"))
    ]


def test_a_document_that_is_no_json_or_too_large_is_an_error_that_names_it(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"posts\.json: not a JSON document") as caught:
        ids(write(tmp_path, ".json", LINES))
    assert ".jsonl" in caught.value.remedy
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match=r"posts\.json: a document of more than 100 bytes"):
        ids(write(tmp_path, ".json", LINES))


def every_format(folder: Path) -> None:
    """The posts 0 to 6, in files whose names are in their order."""
    (folder / "a.jsonl").write_bytes(line(0) + line(1))
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"id,text,media\n2,post 2,2.jpg\n3,post 3,3.jpg\n"))
    (folder / "c.jsonl.zst").write_bytes(COMPRESS[".jsonl.zst"](line(4)))
    table = {"id": ["5"], "text": ["post 5"], "media": [["5.jpg"]]}
    pq.write_table(pa.table(table), folder / "d.parquet")
    tweet = {"id": "6", "text": "post 6", "attachments": {"media_keys": ["3_6"]}}
    media = {"media_key": "3_6", "type": "photo", "url": "6.jpg"}
    (folder / "e.jsonl").write_text(json.dumps({"data": tweet, "includes": {"media": [media]}}))


def test_a_folder_of_files_of_any_format_is_read_one_after_another(tmp_path):
    every_format(tmp_path)
    check_posts_file(str(tmp_path))
    records = list(read_posts(str(tmp_path)))
    assert [(record.file, record.line, record.post.id, record.post.media[0].url) for record in records] == [
        ("a.jsonl", 1, "0", "0.jpg"),
        ("a.jsonl", 2, "1", "1.jpg"),
        ("b.csv.gz", 2, "2", "2.jpg"),
        ("b.csv.gz", 3, "3", "3.jpg"),
        ("c.jsonl.zst", 1, "4", "4.jpg"),
        ("d.parquet", 1, "5", "5.jpg"),
        ("e.jsonl", 1, "6", "6.jpg"),
    ]
    assert ids(f"{tmp_path}/[ae].jsonl") == ["0", "1", "6"]


def test_a_cut_off_file_among_others_is_an_error_once_it_is_reached(tmp_path):
    every_format(tmp_path)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(packed.read_bytes()[:-10])
    records = read_posts(str(tmp_path))
    assert [next(records).post.id, next(records).post.id] == ["0", "1"]
    with pytest.raises(UserError, match=r"b\.csv\.gz: not a whole compressed file"):
        list(records)


def test_a_format_that_a_file_cannot_have_and_a_table_without_its_columns_are_told_beforehand(tmp_path):
    every_format(tmp_path)
    with pytest.raises(UserError, match=r"b\.csv\.gz: x answers JSON, and this is none"):
        check_posts_file(str(tmp_path), "x")
    with pytest.raises(UserError, match="has no list of pictures"):
        check_posts_file(str(tmp_path), "t4sa")
    (tmp_path / "f.csv").write_text("key,words\n")
    with pytest.raises(UserError, match=r"f\.csv: has no column id, text, media"):
        check_posts_file(str(tmp_path))


def test_the_fingerprint_changes_with_any_of_the_files(tmp_path):
    every_format(tmp_path)
    before = posts_fingerprint(str(tmp_path))
    (tmp_path / "notes.txt").write_text("not posts")
    assert posts_fingerprint(str(tmp_path)) == before
    (tmp_path / "c.jsonl.zst").write_bytes(COMPRESS[".jsonl.zst"](line(5)))
    assert posts_fingerprint(str(tmp_path)) != before


def test_memory_does_not_grow_with_the_input(tmp_path):
    def peak_bytes(num_posts: int) -> int:
        # Noise, since a little of a file that packs well unpacks to much, which is held at once.
        noise = random.Random(num_posts)
        texts = (noise.randbytes(40).hex().encode() for _ in range(num_posts))
        content = b"".join(line(number).replace(b"post", text) for number, text in enumerate(texts))
        path = write(tmp_path, ".jsonl.zst", zstandard.ZstdCompressor().compress(content))
        del content
        gc.collect()  # what earlier tests left behind
        tracemalloc.start()
        try:
            for _ in units(read_posts(path), 10):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(8000) < 1.5 * peak_bytes(2000)


@pytest.mark.parametrize(
    ("num_records", "per_unit", "sizes"), [(0, 5, []), (4, 5, [4]), (10, 5, [5, 5]), (3, 1, [1] * 3)]
)
def test_units_are_numbered_and_hold_all_records_in_order(num_records, per_unit, sizes):
    made = list(units(iter(range(num_records)), per_unit))
    assert [number for number, _ in made] == list(range(len(sizes)))
    assert [len(unit) for _, unit in made] == sizes
    assert [record for _, unit in made for record in unit] == list(range(num_records))


def test_units_are_cut_only_when_asked_for():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    made = units(endless(), 3)
    assert next(made) == (0, [0, 1, 2])


def test_the_fingerprint_is_that_of_the_bytes(tmp_path):
    path = write(tmp_path, ".jsonl", b"")
    assert posts_fingerprint(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_how_much_of_the_input_was_read_grows_to_all_of_it(tmp_path, ending):
    noise = random.Random(0)
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[ending]
    for name in ("a", "b"):
        lines = [
            json.dumps({"id": str(number), "text": noise.randbytes(500).hex(), "media": ["a.jpg"]}).encode() + b"\n"
            for number in range(300)
        ]
        (tmp_path / f"{name}{ending}").write_bytes(pack(b"".join(lines)))
    read = ReadShare()
    shares = [read.share() for _ in read_posts(str(tmp_path), read_share=read)]
    assert shares == sorted(shares)
    assert 0.3 < shares[299] < 0.8
    assert read.share() == 1.0


def test_of_posts_that_must_be_labelled_the_others_are_told_with_their_place(tmp_path):
    lines = [
        '{"id": 1, "text": "a", "media": ["a.jpg"], "label": "positive"}',
        '{"id": 2, "text": "b", "media": ["b.jpg"]}',
        "no json",
        '{"id": 3, "text": "c", "media": ["c.jpg"], "label": "spam"}',
        '{"id": 4, "text": "d", "media": ["d.jpg"], "label": [0.1, 0.2, 0.7]}',
    ]
    (tmp_path / "posts.jsonl").write_text("\n".join(lines))
    found = list(labelled(read_posts(str(tmp_path / "posts.jsonl"))))
    assert [(one.line, one.post_id, one.reason) for one in found if not one.post] == [
        (2, "2", "no_label"),
        (3, None, "bad_json"),
        (4, "3", "no_label"),
    ]
    assert {one.file for one in found} == {"posts.jsonl"}
    assert [one.post.label for one in found if one.post] == [(0, 0, 1), (0.1, 0.2, 0.7)]


def test_tables_may_have_a_column_of_labels(tmp_path):
    (tmp_path / "posts.csv").write_text('id,text,media,label\n1,a,a.jpg,2\n2,b,b.jpg,"[0.1, 0.2, 0.7]"\n3,c,c.jpg,\n')
    assert [one.post.label for one in read_posts(str(tmp_path / "posts.csv"))] == [(0, 0, 1), (0.1, 0.2, 0.7), None]
    table = pa.table({"id": [1, 2], "text": ["a", "b"], "media": ["a", "b"], "label": [[0.1, 0.2, 0.7], None]})
    pq.write_table(table, tmp_path / "posts.parquet")
    assert [one.post.label for one in read_posts(str(tmp_path / "posts.parquet"))] == [(0.1, 0.2, 0.7), None]
