import gzip
import json
import tracemalloc

import pytest
import zstandard

from shards.errors import UserError
from xmodal.posts.readers import check_posts_file, posts_fingerprint, read_posts, units


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


def test_memory_does_not_grow_with_the_input(tmp_path):
    def peak_bytes(num_posts: int) -> int:
        content = b"".join(line(number) for number in range(num_posts))
        path = write(tmp_path, ".jsonl.zst", zstandard.ZstdCompressor().compress(content))
        del content
        tracemalloc.start()
        try:
            for _ in units(read_posts(path), 10):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(8000) < 1.5 * peak_bytes(2000) + 100_000


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
