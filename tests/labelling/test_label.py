"""Whole runs of `xmodal label` on a real local Ray, against a real web server."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import label_command
import made_pictures as made
import pytest
import web_server as web
from tiny_classifier import save_classifier

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.storage import open_storage
from xmodal import cli
from xmodal.labelling import label as driver
from xmodal.labelling.cluster import _common_identity
from xmodal.labelling.config import LabelConfig
from xmodal.teacher.lexicon import LexiconTeacher

TRIES = 2
MAX_BYTES = 100_000
FIELDS = (
    *("soft_label", "teacher", "post_id", "url", "sha256", "pdq", "width", "height"),
    *("lang", "created_at", "source", "author"),
)
SECRET = "zebrafish"
"""A word of every text, to be looked for where no text may be."""
AUTHOR = "kingfisher@example.org"


@dataclass(kw_only=True)
class Case:
    """A line of input and what it must come to."""

    line: bytes
    samples: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Key → extension, width, height."""
    failures: list[dict[str, Any]] = field(default_factory=list)


def post(post_id: Any, *urls: str, **changes: Any) -> bytes:
    text = f"What a lovely {SECRET}, post {post_id}!"
    return json.dumps({"id": post_id, "text": text, "media": [{"url": url} for url in urls], **changes}).encode()


def failure(reason: str, post_id: str | None = None, **changes: Any) -> dict[str, Any]:
    number = 0 if "url" in changes else None
    input_place = {"author": None, "file": None, "line": None, "detail": None}
    plain = {"media_number": number, "url": None, "http_status": None, "retryable": False, "tries": 0} | input_place
    return {"post_id": post_id, "reason": reason} | plain | changes


def good(key: str, extension: str = "jpg", width: int = 64, height: int = 48) -> dict[str, tuple[str, int, int]]:
    return {key: (extension, width, height)}


def kept_pictures(server: web.WebServer) -> Iterator[Case]:
    """Pictures of every kind that must become samples."""
    pictures = {
        "plain": (made.jpeg(), "jpg", 64, 48),
        "cmyk": (made.cmyk_jpeg(), "jpg", 64, 48),
        "palette": (made.transparent_palette_png(), "png", 64, 48),
        "deep": (made.sixteen_bit_png(), "png", 64, 48),
        "webp": (made.animation("WEBP"), "webp", 64, 48),
        "gif": (made.animation("GIF"), "jpg", 64, 48),
        "bmp": (made.encode(made.pixels(seed=1), "BMP"), "jpg", 64, 48),
        "tiff": (made.encode(made.pixels(seed=2), "TIFF"), "jpg", 64, 48),
        "turned": (made.jpeg(seed=3, exif=made.turned_exif()), "jpg", 48, 64),
        "wide": (made.jpeg(600, 300), "jpg", 256, 128),
    }
    for name, (content, extension, width, height) in pictures.items():
        url = server.answer(name, web.content(content))
        yield Case(line=post(name, url), samples=good(f"{name}-0", extension, width, height))


def odd_posts(server: web.WebServer) -> Iterator[Case]:
    """Posts that look odd, with pictures that are there."""
    photo = server.answer("a.jpg", web.content(made.jpeg(seed=10)))
    server.answer("a%20b.jpg", web.content(made.jpeg(seed=11)))
    for post_id, key in [
        (12345, "12345-0"),
        ("a.b", "a%2Eb-0"),
        ("../up/a b", "%2E%2E%2Fup%2Fa%20b-0"),
        ("naïve 😀", "na%C3%AFve%20%F0%9F%98%80-0"),
        ("half \ud83d", "half%20%3F-0"),
        ("x" * 200, "x" * 200 + "-0"),
    ]:
        yield Case(line=post(post_id, photo), samples=good(key))
    yield Case(line=post("text", photo, text=f"half {SECRET} \ud83d \x00 love"), samples=good("text-0"))
    yield Case(
        line=post("relative", "a.jpg", "/a.jpg", "a b.jpg"),
        samples={**good("relative-0"), **good("relative-1"), **good("relative-2")},
    )
    yield Case(
        line=post("described", photo, lang="en", created_at=1577923200, author=AUTHOR, source="dump"),
        samples=good("described-0"),
    )
    server.answer("passing", web.in_turn(web.status(429), web.content(made.jpeg(seed=12))))
    yield Case(line=post("passing", "passing"), samples=good("passing-0"))


def lines_without_a_post() -> Iterator[Case]:
    no_json, no_id = "line: not JSON in UTF-8", "id: missing, or neither text nor a whole number"
    for line, reason, detail, post_id in [
        (b'{"id": "cut", "text": "' + SECRET.encode(), "bad_json", no_json, None),
        (b"\x00\xff\xfe" + made.GARBAGE.replace(b"\n", b""), "bad_json", no_json, None),
        (b'{"id": "latin", "text": "\xe9 ' + SECRET.encode() + b'", "media": ["a.jpg"]}', "bad_json", no_json, None),
        (b"[" * 50_000, "bad_json", no_json, None),
        (b"[1, 2]", "bad_post", "not an object", None),
        (post(["list"], "a.jpg"), "bad_post", no_id, None),
        (post(None, "a.jpg"), "bad_post", no_id, None),
        (post("y" * 201, "a.jpg"), "bad_post", "id: longer than 200 characters", None),
        (post("no text", "a.jpg", text=None), "no_text", "text: missing or empty", "no text"),
        (post("blank", "a.jpg", text=" \n"), "no_text", "text: missing or empty", "blank"),
        (post("no media"), "no_media", "media: missing or empty", "no media"),
        (post("odd media", media={"url": "a.jpg"}), "bad_post", "media: not a list", "odd media"),
    ]:
        yield Case(line=line, failures=[failure(reason, post_id, detail=detail, line=0)])


def bad_urls(refusing_port: int) -> Iterator[Case]:
    for number, url in enumerate(
        [
            "ftp://127.0.0.1/a.jpg",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "",
            "   ",
            "http://",
            "http:///a.jpg",
            "http://[::1/a.jpg",
            "http://\u2100/a.jpg",
            "http://host name/a.jpg",
            "http://127.0.0.1:99999/a.jpg",
        ]
    ):
        yield Case(line=post(f"url{number}", url), failures=[failure("bad_url", f"url{number}", url=url)])
    url = f"http://127.0.0.1:{refusing_port}/a.jpg"
    yield Case(
        line=post("refused", url),
        failures=[failure("connection_error", "refused", url=url, retryable=True, tries=TRIES)],
    )


def bad_answers(server: web.WebServer) -> Iterator[Case]:
    for name, answer, reason, http_status, retryable in [
        ("gone", web.status(404), "http_error", 404, False),
        ("broken", web.status(500), "http_error", 500, True),
        ("busy", web.status(429), "http_error", 429, True),
        ("garbage", web.content(made.GARBAGE), "not_an_image", 200, False),
        ("html", web.content(made.HTML, "text/html"), "not_an_image", 200, False),
        ("svg", web.content(made.SVG, "image/svg+xml"), "not_an_image", 200, False),
        ("truncated", web.content(made.jpeg()[:-300]), "undecodable", 200, False),
        ("empty", web.content(b""), "empty", 200, False),
        ("silent", web.close_at_once, "cut_off", None, True),
        ("cut", web.declared(5000, made.jpeg()[:500]), "cut_off", None, True),
        ("loop", web.redirect("/loop"), "too_many_redirects", None, False),
        ("elsewhere", web.redirect("file:///etc/passwd"), "bad_url", None, False),
        ("declared", web.content(bytes(MAX_BYTES + 1)), "too_large", 200, False),
        ("undeclared", web.chunked(bytes(MAX_BYTES + 1)), "too_large", 200, False),
        ("gzip", web.gzipped(bytes(50_000_000)), "too_large", 200, False),
        ("hanging", web.hang, "timeout", None, True),
        ("trickle", web.trickle(made.jpeg()), "timeout", None, True),
        ("pixel", web.content(made.png(1, 1)), "too_small", 200, False),
        ("bomb", web.content(made.png_that_claims(10_000, 10_000)), "too_many_pixels", 200, False),
        ("larger bomb", web.content(made.png_that_claims(100_000, 100_000)), "too_many_pixels", 200, False),
    ]:
        url = server.answer(name.replace(" ", "%20"), answer)
        told = failure(reason, name, url=url, http_status=http_status, retryable=retryable)
        asked = 0 if reason == "bad_url" and http_status is None and name != "elsewhere" else 1
        yield Case(line=post(name, url), failures=[told | {"tries": TRIES if retryable else asked}])


def several_media(server: web.WebServer) -> Iterator[Case]:
    photo, gone = server.base_url + "a.jpg", server.base_url + "gone"
    media = [{"url": photo}, {"url": "film.mp4", "type": "video"}, {"url": gone}, {"url": photo, "type": "photo"}]
    yield Case(
        line=post("album", media=media),
        samples={**good("album-0"), **good("album-3")},
        failures=[
            failure("not_a_photo", "album", media_number=1, url="film.mp4"),
            failure("http_error", "album", media_number=2, url=gone, http_status=404, tries=1),
        ],
    )
    yield Case(line=post("twice", photo), samples=good("twice-0"))
    yield Case(line=post("twice", photo, text="I hate it"), failures=[failure("duplicate_post", "twice", line=0)])
    yield Case(line=post("last", photo), samples=good("last-0"))


@dataclass(kw_only=True)
class Labelled:
    """A finished run over all cases."""

    cases: list[Case]
    config: Path
    dataset: Path
    server: web.WebServer
    run: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, ray_folder) -> Iterator[Labelled]:
    folder = tmp_path_factory.mktemp("label")
    with web.serving() as server, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        cases = [
            *kept_pictures(server),
            *lines_without_a_post(),
            *odd_posts(server),
            *bad_urls(refusing.getsockname()[1]),
            *bad_answers(server),
            *several_media(server),
        ]
        for number, case in enumerate(cases, start=1):
            for told in case.failures:
                if told["line"] is not None:
                    told |= {"file": "posts.jsonl", "line": number}
        (folder / "posts.jsonl").write_bytes(b"\n".join(case.line for case in cases))
        config = label_command.write_config(
            folder / "label.yaml",
            posts=str(folder / "posts.jsonl"),
            dataset=str(folder / "dataset"),
            base_url=server.base_url,
            posts_per_unit=40,
            pictures={"max_side": 256},
            fetch={
                "max_tries": TRIES,
                "backoff_seconds": 0.05,
                "total_seconds": 4,
                "max_bytes": MAX_BYTES,
                "allow_networks": label_command.LOOPBACK,
            },
        )
        command = [*label_command.LABEL, "--config", str(config)]
        run = label_command.run(command, label_command.environment(ray_folder))
        yield Labelled(cases=cases, config=config, dataset=folder / "dataset", server=server, run=run)


def members(dataset: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(dataset.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def failures(dataset: Path) -> list[dict[str, Any]]:
    paths = sorted(dataset.glob("*.failures.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def by_content(records: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(record, sort_keys=True) for record in records)


def test_bad_input_ends_no_run(labelled):
    assert labelled.run.returncode == 0, labelled.run.stderr
    assert "Traceback" not in labelled.run.stderr


def test_every_picture_that_can_be_had_is_a_sample_and_nothing_else(labelled):
    expected = [
        f"{key}.{kind}"
        for case in labelled.cases
        for key, (ext, _, _) in case.samples.items()
        for kind in (ext, "json")
    ]
    assert list(members(labelled.dataset)) == expected  # in the order of the posts


def test_everything_else_is_in_the_failures_file_with_its_reason(labelled):
    expected = [told for case in labelled.cases for told in case.failures]
    assert by_content(failures(labelled.dataset)) == by_content(expected)


def test_the_json_of_a_sample_holds_what_the_design_says(labelled):
    found = members(labelled.dataset)
    teacher = LexiconTeacher()
    for case in labelled.cases:
        for key, (extension, width, height) in case.samples.items():
            fields = json.loads(found[f"{key}.json"])
            record = json.loads(case.line)
            (label,) = teacher.label([record["text"].encode("utf-8", "replace").decode()])
            assert tuple(fields) == FIELDS
            assert fields["soft_label"] == [round(share, 6) for share in label]
            assert fields["teacher"] == {"name": "vader", "revision": teacher.revision}
            assert fields["post_id"] == str(record["id"]).encode("utf-8", "replace").decode()
            assert fields["url"].startswith(labelled.server.base_url)
            assert fields["sha256"] == hashlib.sha256(found[f"{key}.{extension}"]).hexdigest()
            assert re.fullmatch("[0-9a-f]{64}", fields["pdq"])
            assert (fields["width"], fields["height"]) == (width, height)
    optional = ("lang", "created_at", "source", "author")
    described, plain = json.loads(found["described-0.json"]), json.loads(found["plain-0.json"])
    assert [described[name] for name in optional] == ["en", "1577923200", "dump", AUTHOR]
    assert [plain[name] for name in optional] == ["", "", "", ""]


def test_of_two_posts_with_one_id_the_first_one_counts(labelled):
    negative, _, positive = json.loads(members(labelled.dataset)["twice-0.json"])["soft_label"]
    assert positive > negative


def test_original_bytes_are_kept(labelled):
    found = members(labelled.dataset)
    assert found["plain-0.jpg"] == made.jpeg()
    assert found["cmyk-0.jpg"] == made.cmyk_jpeg()
    assert found["webp-0.webp"] == made.animation("WEBP")


def test_the_tar_names_no_person_and_no_time(labelled):
    for path in labelled.dataset.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "root", 0o644)}


def test_texts_are_nowhere_if_they_are_not_to_be_kept_and_authors_in_the_dataset_alone(labelled, ray_folder):
    logs = list(ray_folder.rglob("*"))
    assert any(path.suffix == ".log" for path in logs)
    for word, places in ((SECRET, [*labelled.dataset.iterdir(), *logs]), (AUTHOR, logs)):
        assert [path for path in places if path.is_file() and word.encode() in path.read_bytes()] == []
        assert word not in labelled.run.stdout + labelled.run.stderr


def test_the_summary_counts_posts_pictures_samples_and_failures(labelled):
    lines = labelled.run.stdout.splitlines()
    assert lines[0] == f"Dataset {labelled.dataset}"
    counts = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[1:])
    reasons = Counter(told["reason"] for case in labelled.cases for told in case.failures)
    assert counts["posts"] == str(len(labelled.cases))
    assert counts["samples"] == str(sum(len(case.samples) for case in labelled.cases))
    retryable = sum(told["retryable"] for case in labelled.cases for told in case.failures)
    listed = ", ".join(f"{reasons[name]} {name}" for name in sorted(reasons))
    assert counts["failures"] == f"{listed}; --retry-failures tries {retryable} of them again"
    assert counts["shards"] == "2 (0 were there before)"


def test_the_dataset_says_what_it_is_made_of(labelled):
    dataset = read_dataset(open_storage(labelled.dataset))
    num_samples = sum(len(case.samples) for case in labelled.cases)
    assert sum(shard["samples"] for shard in dataset["shards"]) == num_samples
    assert sum(sum(shard["label_histogram"].values()) for shard in dataset["shards"]) == num_samples
    assert dataset["teacher"]["name"] == "vader"
    assert dataset["recipe"] == json.loads((labelled.dataset / "recipe.json").read_text())
    assert not list(labelled.dataset.glob(".*"))


def test_webdataset_itself_reads_the_shards(labelled):
    import webdataset

    shards = [str(path) for path in sorted(labelled.dataset.glob("*.tar"))]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False)]
    assert keys == [key for case in labelled.cases for key in case.samples]


def test_running_again_changes_nothing_and_starts_no_ray(labelled, ray_folder):
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in labelled.dataset.glob("*.tar")}
    contents = label_command.hashes(labelled.dataset)
    arguments = ["label", "--config", str(labelled.config)]
    command = (
        f"import sys; from xmodal.cli import main; assert main({arguments!r}) == 0; assert 'ray' not in sys.modules"
    )
    run = label_command.run([sys.executable, "-c", command], label_command.environment(ray_folder))
    assert run.returncode == 0, run.stderr
    assert "2 (2 were there before)" in run.stdout
    assert label_command.hashes(labelled.dataset) == contents
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in labelled.dataset.glob("*.tar")
    } == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--posts_per_unit", "41"], "posts_per_unit"),
        (["--keep_text", "true"], "keep_text"),
        (["--pictures.quality", "80"], "pictures"),
        (["--base_url", "http://127.0.0.1:1/"], "base_url"),
        (["--teacher.kind", "transformers"], "teacher"),
        (["--fetch.max_bytes", "5"], "max_bytes"),
        (["--posts", "other.jsonl"], "posts_sha256"),
        (["--format", "xmodal"], "format"),
        (["--select.languages", "[en]"], "select"),
    ],
)
def test_other_settings_than_it_was_begun_with_are_refused(labelled, tmp_path, monkeypatch, capsys, arguments, name):
    label_command.write_posts(tmp_path / "other.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    contents = label_command.hashes(labelled.dataset)
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, ["--config", str(labelled.config), *arguments], f"recipe.json: {name}: begun with")
    assert label_command.hashes(labelled.dataset) == contents


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    """In two lines, by `xmodal label` in this process, which needs not start first."""
    assert cli.main(["label", *arguments]) == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("xmodal: ")
    assert complaint in first


def test_settings_that_change_no_sample_may_differ_between_runs(labelled):
    arguments = ["--fetch.max_tries", "9", "--max_units_in_flight", "1", "--teacher.num_actors", "2"]
    assert cli.main(["label", "--config", str(labelled.config), *arguments]) == 0


def test_a_folder_of_other_tars_is_refused(labelled, tmp_path, capsys):
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    shutil.copy(next(labelled.dataset.glob("*.tar")), dataset)
    assert_refused(capsys, ["--config", str(labelled.config), "--dataset", str(dataset)], str(dataset))
    assert len(list(dataset.iterdir())) == 1


@pytest.mark.parametrize("kind", ["transformers", "ensemble"])
def test_a_classifier_labels_on_ray_and_texts_are_kept_where_asked_for(server, tmp_path, ray_folder, kind):
    model = save_classifier(tmp_path / "tiny-bert")
    classifier = {"kind": "transformers", "model": str(model)}
    teacher = classifier if kind == "transformers" else {"kind": kind, "members": [classifier, {"kind": "lexicon"}]}
    urls = [server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(4)]
    texts = ["a great day!", "so sad", "it is\nthe day  ", "not good"]
    posts = [{"id": str(number), "text": texts[number], "media": [urls[number]]} for number in range(4)]
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(label_command.write_posts(tmp_path / "posts.jsonl", [*posts, {"id": "none"}])),
        dataset=str(tmp_path / "dataset"),
        posts_per_unit=2,
        keep_text=True,
        teacher=teacher | {"num_actors": 2},
        fetch={"allow_networks": label_command.LOOPBACK},
    )
    done = label_command.run([*label_command.LABEL, "--config", str(config)], label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr

    from xmodal.teacher.classifier import ClassifierTeacher

    read = ClassifierTeacher(str(model))
    name, expected = "tiny-bert", read.label(texts)
    if kind == "ensemble":
        of_both = zip(expected, LexiconTeacher().label(texts), strict=True)
        name = "mean of tiny-bert, vader"
        expected = [tuple((a + b) / 2 for a, b in zip(*labels, strict=True)) for labels in of_both]
    found = members(tmp_path / "dataset")
    assert sorted(found) == sorted(f"{number}-0.{kind}" for number in range(4) for kind in ("jpg", "json", "txt"))
    for number, label in enumerate(expected):
        fields = json.loads(found[f"{number}-0.json"])
        assert fields["soft_label"] == pytest.approx(label, abs=2e-5)
        assert fields["teacher"]["name"] == name
        assert read.revision in fields["teacher"]["revision"]
        assert found[f"{number}-0.txt"].decode() == texts[number]
    assert [told["reason"] for told in failures(tmp_path / "dataset")] == ["no_text"]


def test_units_are_cut_over_the_selected_posts_of_a_folder_of_pages(server, tmp_path, ray_folder):
    url = server.answer("a.jpg", web.content(made.jpeg()))

    def page(*tweets: dict[str, Any]) -> str:
        media = [{"media_key": "3_1", "type": "photo", "url": url}, {"media_key": "7_1", "type": "video"}]
        return json.dumps({"data": tweets, "includes": {"media": media}}) + "\n"

    def tweet(tweet_id: str, key: str = "3_1", **changes: Any) -> dict[str, Any]:
        text = f"What a lovely {SECRET} day, once more"
        return {"id": tweet_id, "text": text, "lang": "en", "attachments": {"media_keys": [key]}} | changes

    retweeted = {"referenced_tweets": [{"type": "retweeted", "id": "9"}]}
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "b.jsonl").write_text("not JSON\n" + page(tweet("3"), tweet("4", lang="fr")))
    (folder / "a.jsonl").write_text(
        page(tweet("1"), tweet("10", **retweeted), tweet("11", key="7_1"), tweet("12", text=SECRET), tweet("2"))
        + page(tweet("13", key="3_9"))
    )
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(folder),
        dataset=str(tmp_path / "dataset"),
        posts_per_unit=2,
        select={"languages": ["en"], "min_words": 6, "photos_only": True, "kinds": ["post"]},
        fetch={"allow_networks": ["127.0.0.0/8"]},
    )
    done = label_command.run([*label_command.LABEL, "--config", str(config)], label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr

    dataset = tmp_path / "dataset"
    assert [name for name in members(dataset) if name.endswith(".jpg")] == ["1-0.jpg", "2-0.jpg", "3-0.jpg"]
    assert [shard["samples"] for shard in read_dataset(open_storage(str(dataset)))["shards"]] == [2, 0, 1]
    # Of page a: 1 and 2; then what could not be read of a and of b; then 3.
    assert [(told["file"], told["line"], told["reason"], told["post_id"]) for told in failures(dataset)] == [
        ("a.jsonl", 2, "media_not_included", "13"),
        ("b.jsonl", 1, "bad_json", None),
    ]
    rejected = {"language": 1, "not_a_photo": 1, "repost": 1, "too_few_words": 1}
    assert json.loads((dataset / "dataset.json").read_text())["rejected"] == rejected
    assert re.search(r"left out +1 language, 1 not_a_photo, 1 repost, 1 too_few_words\n", done.stdout)


def test_a_teacher_that_cannot_be_loaded_is_told_in_two_lines(tmp_path, ray_folder):
    posts = label_command.write_posts(tmp_path / "posts.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    settings = {
        "posts": posts,
        "dataset": tmp_path / "d",
        "teacher.kind": "transformers",
        "teacher.model": tmp_path / "none",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    done = label_command.run([*label_command.LABEL, *arguments], label_command.environment(ray_folder))
    # Ray itself says a line or two where the machine has no network.
    first, second = done.stderr.splitlines()[-2:]
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert first.startswith(f"xmodal: teacher.model: {tmp_path}/none: cannot be loaded")
    assert second.strip().startswith("give a Hugging Face hub name")


def test_posts_in_a_compressed_file_that_is_cut_off_end_the_run_in_two_lines(server, tmp_path, ray_folder):
    import gzip

    url = server.answer("a.jpg", web.content(made.jpeg()))
    posts = b"".join(post(str(number), url) + b"\n" for number in range(200))
    (tmp_path / "posts.jsonl.gz").write_bytes(gzip.compress(posts)[:-20])
    arguments = [
        "--posts",
        str(tmp_path / "posts.jsonl.gz"),
        "--dataset",
        str(tmp_path / "d"),
        "--posts_per_unit",
        "20",
        label_command.ALLOW_LOOPBACK,
    ]
    done = label_command.run([*label_command.LABEL, *arguments], label_command.environment(ray_folder))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"xmodal: {tmp_path}/posts.jsonl.gz: not a whole compressed file" in done.stderr


def test_a_host_that_is_down_costs_its_own_units_alone_and_they_are_done_when_it_answers(server, tmp_path, ray_folder):
    good = [server.answer(f"good-{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(24)]
    later = [server.answer(f"later-{number}.jpg", web.content(made.jpeg(seed=100 + number))) for number in range(24)]
    media = [url.rsplit("/", 1)[1] for url in later] + good
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": "fine", "media": [url]} for number, url in enumerate(media)],
    )
    dataset = tmp_path / "dataset"
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={dataset}", "--posts_per_unit=24"]
    command += ["--fetch.max_tries=1", "--fetch.connect_seconds=2", label_command.ALLOW_LOOPBACK]
    command += ["--politeness.patience_seconds=2"]
    variables = label_command.environment(ray_folder)

    down = label_command.run([*command, "--base_url=http://127.0.0.1:9/"], variables)
    assert down.returncode == 2
    assert "Traceback" not in down.stderr
    assert "wait for their pictures: 1; the first is 000000: none of its 24 pictures could be had" in down.stderr
    assert "connection_error" in down.stderr
    assert [path.name for path in dataset.glob("*.tar")] == ["000001.tar"]

    # The recipe holds for what is committed: another base_url would make other samples of the same posts.
    other = label_command.run([*command, f"--base_url={server.base_url}"], variables)
    assert other.returncode == 2
    assert "base_url: begun with 'http://127.0.0.1:9/'" in other.stderr
    gone = label_command.run([*command, "--base_url=http://127.0.0.1:9/", "--commit_outages=true"], variables)
    assert gone.returncode == 0, gone.stderr
    # Those that were asked for until the host as a whole was taken to be down, and the others.
    reasons = Counter(told["reason"] for told in failures(dataset))
    assert reasons.keys() == {"connection_error", "host_down"}
    assert reasons.total() == 24
    assert [path.name for path in sorted(dataset.glob("*.tar"))] == ["000000.tar", "000001.tar"]


def test_a_run_that_committed_nothing_binds_the_next_one_to_nothing(server, tmp_path, ray_folder):
    names = [server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(24)]
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": "fine", "media": [url.rsplit("/", 1)[1]]} for number, url in enumerate(names)],
    )
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'dataset'}"]
    variables = label_command.environment(ray_folder)
    forgotten = label_command.run(command, variables)
    assert forgotten.returncode == 2
    assert "none of its 24 pictures could be had (bad_url)" in forgotten.stderr
    assert "base_url" in forgotten.stderr.splitlines()[-1]
    command.append(f"--base_url={server.base_url}")
    not_allowed = label_command.run(command, variables)
    assert not_allowed.returncode == 2
    assert "none of its 24 pictures could be had (forbidden_address)" in not_allowed.stderr
    assert "fetch.allow_networks" in not_allowed.stderr.splitlines()[-1]
    mended = label_command.run([*command, label_command.ALLOW_LOOPBACK], variables)
    assert mended.returncode == 0, mended.stderr
    assert len(list((tmp_path / "dataset").glob("*.tar"))) == 1


@pytest.mark.parametrize("base_url", ["http://", "http://[x", "ftp://host/", "host/folder"])
def test_a_base_url_without_a_host_is_refused_at_once(tmp_path, base_url):
    with pytest.raises(UserError, match="base_url"):
        LabelConfig(posts="posts.jsonl", dataset=str(tmp_path), base_url=base_url)


def test_a_folder_of_pictures_that_is_not_there_is_told_at_once(tmp_path):
    posts = label_command.write_posts(tmp_path / "posts.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    config = LabelConfig(posts=str(posts), dataset=str(tmp_path / "dataset"), media_folder=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: no such folder"):
        driver.label(config)
    assert not (tmp_path / "dataset").exists()


def test_pictures_are_fetched_or_read_from_a_folder_and_not_both():
    with pytest.raises(UserError, match="media_folder: 'm' has no effect with base_url"):
        LabelConfig(posts="p", dataset="d", media_folder="m", base_url="http://example.org/")


def test_a_ray_address_where_nothing_listens_is_told_at_once(tmp_path, ray_folder):
    posts = label_command.write_posts(tmp_path / "p.jsonl", [{"id": "1", "text": "fine", "media": ["http://a/b.jpg"]}])
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'd'}", "--ray_address=127.0.0.1:9"]
    done = label_command.run(command, label_command.environment(ray_folder), seconds=60)
    label_command.assert_told_in_two_lines(done, "ray_address: 127.0.0.1:9: no Ray cluster answers")


@pytest.mark.parametrize("folder", ["/proc/1", "/dev/null", "/dev/null/below"])
def test_a_dataset_that_cannot_be_written_is_told_in_two_lines(tmp_path, capsys, folder):
    posts = label_command.write_posts(tmp_path / "p.jsonl", [{"id": "1", "text": "fine", "media": ["http://a/b.jpg"]}])
    assert_refused(capsys, [f"--posts={posts}", f"--dataset={folder}"], folder)


def test_teachers_that_differ_from_node_to_node_are_refused():
    same = {"name": "model", "revision": "a"}
    assert _common_identity([same, dict(same)]) == same
    with pytest.raises(UserError, match=r"teacher\.model: one node has"):
        _common_identity([same, same | {"revision": "b"}])
