"""Lines of input of every kind with what each must come to, and what came of them in a dataset."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import made_pictures as made
import web_server as web

TRIES = 2
MAX_BYTES = 100_000
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


def _kept_pictures(server: web.WebServer) -> Iterator[Case]:
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


def _odd_posts(server: web.WebServer) -> Iterator[Case]:
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


def _lines_without_a_post() -> Iterator[Case]:
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


def _bad_urls(refusing_port: int) -> Iterator[Case]:
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


def _bad_answers(server: web.WebServer) -> Iterator[Case]:
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


def _several_media(server: web.WebServer) -> Iterator[Case]:
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


def all_cases(server: web.WebServer, refusing_port: int) -> list[Case]:
    """In the order of their lines in `posts.jsonl`."""
    cases = [
        *_kept_pictures(server),
        *_lines_without_a_post(),
        *_odd_posts(server),
        *_bad_urls(refusing_port),
        *_bad_answers(server),
        *_several_media(server),
    ]
    for number, case in enumerate(cases, start=1):
        for told in case.failures:
            if told["line"] is not None:
                told |= {"file": "posts.jsonl", "line": number}
    return cases


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
