"""Published models from a web server as bad as the web: whole or not at all, and the same ones each time."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import web_server
from keras_files import MadeViT

from shards.errors import UserError
from xmodal import cli
from xmodal.models import download as downloading
from xmodal.models.convert import convert
from xmodal.models.download import download
from xmodal.models.pull import CHECKSUMS, download_name, pull
from xmodal.published import PUBLISHED, PublishedModel
from xmodal.students import load_student

ROOT = Path(__file__).parent.parent.parent
TINY = PublishedModel(name="Tiny_T4SA", backbone="other", size=32, pixels="-1..1", dataset=None)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty models folder, and a small published model beside the twelve."""
    monkeypatch.setenv("XMODAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setitem(PUBLISHED, TINY.name, TINY)
    monkeypatch.setattr(downloading, "_SECONDS_BETWEEN", 0.0)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory) -> bytes:
    return MadeViT().write(tmp_path_factory.mktemp("keras") / "m.h5", "keras2-weights").read_bytes()


class FileServer:
    """One file, with ranges; each answer is cut off as told."""

    def __init__(self, body: bytes, *, etag: str | None = '"1"', cut_after: int | None = None, ranges: bool = True):
        self.body, self.etag, self.cut_after, self.ranges = body, etag, cut_after, ranges
        self.asked: list[str | None] = []
        """The Range of each request."""
        self.sent = 0
        self.wait_at_the_cut = False

    def __call__(self, handler: web_server._Handler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and handler.headers.get("If-Range") not in (None, self.etag):
            start = 0
        headers = {"Content-Length": str(len(self.body) - start)} | ({"ETag": self.etag} if self.etag else {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        handler.send_head(206 if start else 200, headers)
        part = self.body[start:][: self.cut_after]
        self.sent += len(part)
        handler.wfile.write(part)
        if start + len(part) < len(self.body):
            if self.wait_at_the_cut:
                handler.server.owner.stopping.wait(60)
            handler.close_connection = True


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def same_student(folder: Path, keras_file: bytes, tmp_path: Path) -> bool:
    """Whether a folder is the student of the file."""
    (tmp_path / "direct.h5").write_bytes(keras_file)
    convert(str(tmp_path / "direct.h5"), str(tmp_path / "direct"), model=TINY)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(load_student(str(folder))(pixels), load_student(str(tmp_path / "direct"))(pixels))


def run(*arguments: str, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    code = cli.main(["models", "pull", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize("etag", ['"1"', None], ids=["etag", "no-etag"])
def test_connections_that_are_cut_are_taken_up_where_they_broke(cache, server, keras_file, tmp_path, capsys, etag):
    files = FileServer(keras_file, etag=etag, cut_after=len(keras_file) // 3)
    url = server.answer("m.h5", files)
    code, out, _ = run(TINY.name, "--url", url, capsys=capsys)
    assert code == 0
    assert str(cache / TINY.name) in out
    assert files.asked == [None, *(f"bytes={n * (len(keras_file) // 3)}-" for n in range(1, len(files.asked)))]
    assert len(files.asked) > 2
    assert files.sent == len(keras_file)
    assert visible(cache) == [TINY.name, CHECKSUMS]
    assert same_student(cache / TINY.name, keras_file, tmp_path)
    # The head of the authors' weights is that of their scripts.
    assert json.loads((cache / TINY.name / "config.json").read_text())["head_gelu"] == "tanh"
    assert load_student(TINY.name).embed_dim == 128


def test_a_pulled_model_is_not_asked_for_again(cache, server, keras_file, capsys):
    files = FileServer(keras_file)
    url = server.answer("m.h5", files)
    assert pull(TINY, url=url) is not None
    code, out, _ = run(TINY.name, "--url", url, capsys=capsys)
    assert (code, len(files.asked)) == (0, 1)
    assert "before, and whole" in out


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"\0\0\0\1"), ("config.json", b"{}"), ("config.json", None)]
)
def test_a_pulled_model_that_was_damaged_is_pulled_again(cache, server, keras_file, tmp_path, name, content):
    url = server.answer("m.h5", FileServer(keras_file))
    pull(TINY, url=url)
    file = cache / TINY.name / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -len(content)] + content)
    assert pull(TINY, url=url) is not None
    assert same_student(cache / TINY.name, keras_file, tmp_path)


def test_a_folder_that_no_pull_made_is_none_of_its_models(cache, server, keras_file, tmp_path):
    (cache / TINY.name).mkdir(parents=True)
    assert pull(TINY, url=server.answer("m.h5", FileServer(keras_file))) is not None
    assert same_student(cache / TINY.name, keras_file, tmp_path)


def test_where_the_disk_is_full_the_download_is_kept_and_nothing_else(cache, server, keras_file, tmp_path, capsys):
    """Files may not be longer than so much: what the disk says then is the same, but for a word."""
    files = FileServer(keras_file)
    url = server.answer("m.h5", files)
    work = cache / f".{TINY.name}"
    work.mkdir(parents=True)
    download(url, work / download_name(TINY, url))
    (tmp_path / "m.h5").write_bytes(keras_file)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        codes = [cli.main(["models", "pull", TINY.name, "--url", url])]
        codes.append(cli.main(["models", "convert", str(tmp_path / "m.h5"), str(tmp_path / "student")]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert codes == [2, 2]
    told = capsys.readouterr().err.splitlines()
    assert ["File too large" in line for line in told] == [True, False, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "models"]
    assert visible(cache) == []
    pull(TINY, url=url)
    assert len(files.asked) == 1


def test_another_file_than_the_first_time_is_refused_until_its_checksum_is_taken_out(cache, server, keras_file, capsys):
    files = FileServer(keras_file)
    url = server.answer("m.h5", files)
    pull(TINY, url=url)
    shutil.rmtree(cache / TINY.name)
    files.body = keras_file + b"\0"
    code, _, err = run(TINY.name, "--url", url, capsys=capsys)
    assert code == 2
    what, remedy = err.splitlines()
    assert "is not the file that was pulled before" in what
    assert CHECKSUMS in remedy
    assert visible(cache) == [CHECKSUMS]
    (cache / CHECKSUMS).write_text("{}")
    assert pull(TINY, url=url) is not None


def test_a_server_without_ranges_sends_the_whole_again(cache, server, keras_file, tmp_path):
    files = FileServer(keras_file, cut_after=len(keras_file) // 2, ranges=False)

    def second_time_whole(handler: web_server._Handler) -> None:
        files(handler)
        files.cut_after = None

    pull(TINY, url=server.answer("m.h5", second_time_whole))
    assert files.asked == [None, f"bytes={len(keras_file) // 2}-"]
    assert same_student(cache / TINY.name, keras_file, tmp_path)


@pytest.mark.parametrize("etags", [True, False], ids=["etag", "no-etag"])
def test_halves_of_two_files_are_never_put_together(cache, server, keras_file, tmp_path, etags):
    """Between two answers, the file there becomes another."""
    other = keras_file + bytes(8)
    files = FileServer(keras_file, etag='"1"' if etags else None, cut_after=len(keras_file) // 2)

    def then_another(handler: web_server._Handler) -> None:
        files(handler)
        files.body, files.cut_after = other, None
        files.etag = '"2"' if etags else None

    download(server.answer("m.h5", then_another), tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_bytes() == other


def test_a_killed_download_leaves_nothing_visible_and_is_gone_on_with(cache, server, keras_file):
    files = FileServer(keras_file, cut_after=100_000)
    files.wait_at_the_cut = True
    url = server.answer("m.h5", files)
    work = cache / f".{TINY.name}"
    work.mkdir(parents=True)
    program = "import sys; from pathlib import Path; from xmodal.models.download import download\n"
    program += "download(sys.argv[1], Path(sys.argv[2]))"
    file = work / download_name(TINY, url)
    process = subprocess.Popen([sys.executable, "-c", program, url, str(file)], cwd=ROOT)
    try:
        part = file.with_name(f"{file.name}.part")
        wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert visible(cache) == []
    with pytest.raises(UserError, match="is not on this machine"):
        load_student(TINY.name)
    files.cut_after, files.wait_at_the_cut = None, False
    pull(TINY, url=url)
    assert files.asked == [None, "bytes=100000-"]
    assert files.sent == len(keras_file)
    assert visible(cache) == [TINY.name, CHECKSUMS]
    assert not work.exists()


def test_what_an_ended_pull_had_downloaded_is_not_taken_for_what_lies_elsewhere(cache, server, keras_file, monkeypatch):
    mirror, release = (FileServer(content) for content in (keras_file + b"\0", keras_file))
    mirrored, url = server.answer("mirrored.h5", mirror), server.answer("m.h5", release)

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("xmodal.models.pull.convert", killed)
        with pytest.raises(KilledError):
            pull(TINY, url=mirrored)
    assert pull(TINY, url=url) is not None
    assert (len(mirror.asked), len(release.asked)) == (1, 1)
    kept = json.loads((cache / CHECKSUMS).read_text())[TINY.name]
    assert (kept["url"], kept["file"]) == (url, hashlib.sha256(keras_file).hexdigest())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_body_that_does_not_say_its_length_is_taken_whole(server, keras_file, tmp_path):
    download(server.answer("m.h5", web_server.chunked(keras_file)), tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_bytes() == keras_file
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def test_a_redirect_is_followed_and_a_server_that_is_busy_asked_again(server, keras_file, tmp_path):
    files = FileServer(keras_file)
    url = server.answer("stored.h5", web_server.in_turn(web_server.status(503), web_server.close_at_once, files))
    download(server.answer("m.h5", web_server.redirect(url)), tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_bytes() == keras_file


def test_a_redirect_never_leads_to_another_protocol(server, tmp_path):
    url = server.answer("m.h5", web_server.redirect("ftp://127.0.0.1/m.h5"))
    with pytest.raises(UserError, match="leads to a place that is less safe: ftp://127"):
        download(url, tmp_path / "m.h5")
    # No TLS server is needed to see what would be done with its redirect.
    request = urllib.request.Request("https://127.0.0.1/m.h5")
    with pytest.raises(UserError, match=r"https://127.0.0.1/m.h5: leads to a place that is less safe: http://"):
        downloading._SafeRedirects().redirect_request(request, None, 302, "", {}, "http://127.0.0.1/m.h5")


def test_a_server_that_sends_more_than_it_said_is_given_up(server, keras_file, tmp_path, monkeypatch):
    """A rest whose range ends where the file does, and which goes on: else it would be downloaded again for ever."""
    monkeypatch.setattr(downloading, "_SECONDS_BETWEEN", 0.0)
    half = len(keras_file) // 2
    asked: list[str | None] = []

    def answer(handler: web_server._Handler) -> None:
        asked.append(handler.headers.get("Range"))
        assert len(asked) < 20, "never given up"
        if not asked[-1]:
            handler.send_head(200, {"Content-Length": str(len(keras_file)), "ETag": '"1"'})
            handler.wfile.write(keras_file[:half])
            handler.close_connection = True
            return
        content_range = f"bytes {half}-{len(keras_file) - 1}/{len(keras_file)}"
        handler.send_head(206, {"Content-Length": str(half + 100), "Content-Range": content_range, "ETag": '"1"'})
        handler.wfile.write(keras_file[half:][:half] + bytes(100))

    with pytest.raises(UserError, match="sends more than its"):
        download(server.answer("m.h5", answer), tmp_path / "m.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_here_stands_for_its_model_as_a_download_does(cache, keras_file, tmp_path, capsys):
    file = tmp_path / "from-a-browser.h5"
    file.write_bytes(keras_file)
    code, out, _ = run(TINY.name, "--file", str(file), capsys=capsys)
    assert code == 0
    assert str(cache / TINY.name) in out
    assert visible(cache) == [TINY.name, CHECKSUMS]
    assert same_student(Path(TINY.name), keras_file, tmp_path)
    assert json.loads((cache / CHECKSUMS).read_text())[TINY.name]["file"] == hashlib.sha256(keras_file).hexdigest()
    assert file.read_bytes() == keras_file
    provenance = (cache / TINY.name / "provenance.json").read_text()
    assert json.loads(provenance)["converted_from"]["file"] == file.name
    assert str(tmp_path) not in provenance
    # Now it is there; when it was lost, no other file than the first one takes its place.
    code, out, _ = run(TINY.name, "--file", str(file), capsys=capsys)
    assert (code, "before, and whole" in out) == (0, True)
    shutil.rmtree(cache / TINY.name)
    file.write_bytes(keras_file + b"\0")
    code, _, err = run(TINY.name, "--file", str(file), capsys=capsys)
    assert code == 2
    assert f"{file}: is not the file that was pulled before" in err
    assert file.exists()


def test_a_file_that_is_no_model_is_refused_and_left_where_it_is(cache, tmp_path, capsys):
    page = tmp_path / "page.h5"
    page.write_bytes(b"<html>Virus scan warning</html>")
    for file, complaint in ((page, "is no HDF5 file"), (tmp_path / "none.h5", "cannot be read: No such file")):
        code, _, err = run("boosted_model", "--file", str(file), capsys=capsys)
        assert code == 2
        assert complaint in err.splitlines()[0]
    assert page.exists()
    assert visible(cache) == []


def test_two_pulls_at_once_download_once(cache, server, keras_file):
    files = FileServer(keras_file)
    url = server.answer("m.h5", files)
    done = []
    threads = [threading.Thread(target=lambda: done.append(pull(TINY, url=url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one is None for one in done) == [False, True]
    assert len(files.asked) == 1


# --- refused ---------------------------------------------------------------------------------------------------------


def test_where_there_is_no_network_two_lines_say_so(cache, capsys):
    with web_server.serving() as gone:
        url = f"{gone.base_url}m.h5"
    code, _, err = run(TINY.name, "--url", url, capsys=capsys)
    assert code == 2
    what, remedy = err.splitlines()
    assert "cannot be downloaded: Connection refused" in what
    assert "network" in remedy
    assert visible(cache) == []


def test_a_server_that_only_ever_cuts_ends_in_an_error_that_keeps_what_came(cache, server, keras_file, capsys):
    files = FileServer(keras_file, cut_after=1000)

    def once(handler: web_server._Handler) -> None:
        files(handler)
        files.cut_after = 0

    code, _, err = run(TINY.name, "--url", server.answer("m.h5", once), capsys=capsys)
    assert code == 2
    assert "cannot be downloaded: the connection was cut; 1,000 bytes are kept for the next time" in err.splitlines()[0]
    assert len(files.asked) == 4


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (web_server.status(404), "HTTP 404"),
        (web_server.content(b"<html>Virus scan warning</html>"), "is no HDF5 file"),
        (web_server.content(b"\x89HDF\r\n\x1a\nand no more"), "is damaged or cut off"),
        (web_server.endless, "goes on after 3,000,000 bytes"),
        (lambda handler: handler.send_head(200, {"Content-Length": str(1 << 40)}), "has 1,099,511,627,776 bytes"),
        (web_server.not_http, "its answer is no HTTP (BadStatusLine)"),
    ],
    ids=["not-found", "page", "damaged", "endless", "too-large", "no-http"],
)
def test_what_is_no_model_is_refused_and_nothing_of_it_kept(cache, server, monkeypatch, capsys, answer, complaint):
    monkeypatch.setattr(downloading, "MAX_BYTES", 3_000_000)
    code, _, err = run(TINY.name, "--url", server.answer("m.h5", answer), capsys=capsys)
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 2
    assert complaint in lines[0]
    assert visible(cache) == []
    assert not list((cache / f".{TINY.name}").glob("*.h5*"))


def test_the_file_of_another_model_is_refused(cache, server, keras_file, capsys):
    code, _, err = run("ViT_B32", "--url", server.answer("m.h5", FileServer(keras_file)), capsys=capsys)
    assert code == 2
    assert "ViT_B32 is a ViT_B32 for 224" in err
    assert visible(cache) == []


@pytest.mark.parametrize(
    ("arguments", "complaint", "remedy"),
    [
        (["boosted_model"], "no release holds its weights", "pull boosted_model --file boosted_model.h5"),
        (["ViT_L16", "--file", "m.h5", "--url", "https://127.0.0.1/m.h5"], "are two places", "one of them"),
        (["ViT_L61"], "none of the paper's twelve", "did you mean ViT_L16?"),
        ([], "pull takes one name", "xmodal models pull"),
        (["ViT_L16", "--url", "file:///etc/hostname"], "is no URL of the web", "https://"),
        (["ViT_L16", "--url", "http://[bad/m.h5"], "is no URL of the web", "https://"),
        (["ViT_L16", "--url", "http://127.0.0.1:port/m.h5"], "is no URL of the web", "https://"),
        (["ViT_L16", "--url", "https:///m.h5"], "is no URL of the web", "https://"),
        (["ViT_L16", "--url", "http://127.0.0.1/Gefühl.h5"], "is no URL of the web", "https://"),
        (["ViT_L16", "--url", "http://127.0.0.1/a b.h5"], "is no URL of the web", "https://"),
    ],
)
def test_a_mistake_in_asking_for_a_model_is_told_in_two_lines(cache, capsys, arguments, complaint, remedy):
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 2
    assert complaint in lines[0]
    assert remedy in lines[1]


@pytest.mark.parametrize("content", ["", "[]", '{"Tiny_T4SA": 3}'])
def test_checksums_that_cannot_be_read_are_told(cache, server, keras_file, content):
    cache.mkdir()
    (cache / CHECKSUMS).write_text(content)
    with pytest.raises(UserError, match=r"checksums\.json: "):
        pull(TINY, url=server.answer("m.h5", FileServer(keras_file)))


def test_a_pull_that_is_killed_while_it_takes_an_old_student_away_is_done_again(cache, server, keras_file, monkeypatch):
    url = server.answer("m.h5", FileServer(keras_file))
    pull(TINY, url=url)
    (cache / CHECKSUMS).unlink()  # as the complaint about another file advises

    class KilledError(BaseException):
        pass

    def killed_half_way(folder: str | Path, **_: object) -> None:
        for file in Path(folder).rglob("config.json"):
            file.unlink()
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed_half_way)
        with suppress(KilledError):
            pull(TINY, url=url)
    pull(TINY, url=url)
    assert load_student(TINY.name).embed_dim == 128


def test_a_models_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XMODAL_MODELS", str(tmp_path / "file" / "models"))
    code, _, err = run("ViT_L16", capsys=capsys)
    assert code == 2
    assert "cannot be written to" in err
