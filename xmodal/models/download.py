"""A large file over HTTP → a local file, whole or not at all: cut connections are taken up where they broke."""

import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from shards.errors import UserError

log = logging.getLogger(__name__)

MAX_BYTES = 8 << 30
"""No published model comes near it: a server that goes on and on must not fill the disk."""
_TRIES_WITHOUT_PROGRESS = 3
_SECONDS_BETWEEN = 1.0
"""After tries that brought nothing; one that brought something is followed by the next at once."""
_TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 20
# A web server's way to say: later, perhaps.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects that stay as safe as the URL was: never from https to http, and never to FTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://" if req.type == "https" else ("https://", "http://")):
            raise UserError(
                f"{req.full_url}: leads to a place that is less safe: {newurl}", "give another place by --url"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SafeRedirects)


@dataclass
class _Partial:
    """What of a file is here, and what is known of the whole; both survive the process."""

    path: Path
    url: str
    validator: str | None = None
    """ETag or date of what the bytes are of: the server sends the rest of that, or all of another."""
    total: int | None = None

    @property
    def notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def load(self) -> None:
        """What an earlier process left, if the server can be asked whether it is still of what lies there."""
        try:
            notes = json.loads(self.notes.read_bytes())
            if notes["url"] == self.url and notes["validator"]:
                self.validator, self.total = notes["validator"], notes["total"]
                return
        except (OSError, ValueError, LookupError, TypeError):
            pass
        self.restart()

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.validator = self.total = None

    def keep_notes(self) -> None:
        self.notes.write_text(json.dumps({"url": self.url, "validator": self.validator, "total": self.total}))


def download(url: str, path: Path) -> None:
    """Download to `path`, which is there only once it is whole; `.part` beside it is what a later call goes on with.

    One process at a time may download to a path. Raises UserError where the file cannot be had.
    """
    if not _is_of_the_web(url):
        raise UserError(f"{url}: is no URL of the web", "give one as https://host/m.h5, a space in it as %20")
    partial = _Partial(path=path.with_name(f"{path.name}.part"), url=url)
    partial.load()
    fruitless = 0
    while True:
        before = partial.size()
        reason = _try(partial)
        if reason is None:
            break
        fruitless = 0 if partial.size() > before else fruitless + 1
        if fruitless == _TRIES_WITHOUT_PROGRESS:
            kept = f"; {partial.size():,} bytes are kept for the next time" if partial.size() else ""
            raise UserError(f"{url}: cannot be downloaded: {reason}{kept}", "see to the network, and try again")
        log.info("%s: %s after %d bytes; trying again", url, reason, partial.size())
        if fruitless:
            time.sleep(_SECONDS_BETWEEN)
    with open(partial.path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial.path, path)
    partial.notes.unlink(missing_ok=True)


def _is_of_the_web(url: str) -> bool:
    """Whether http.client can ask for it at all: it encodes neither spaces nor what is no ASCII."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname) and bool(re.fullmatch(r"[!-~]+", url))


def _try(partial: _Partial) -> str | None:
    """One request for what is still lacking. Returns None when the file is whole, else why it is not."""
    have = partial.size()
    if have and have == partial.total:
        return None
    headers = {"Accept-Encoding": "identity", "User-Agent": "xmodal"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        response = _OPENER.open(urllib.request.Request(partial.url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is more than there is
            partial.restart()
            return "the file there is another now"
        if error.code in _PASSING:
            return f"HTTP {error.code}"
        raise UserError(
            f"{partial.url}: cannot be downloaded: HTTP {error.code}",
            "see whether this file is still there, or give another place by --url",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        return _reason(error)
    with response:
        return _receive(response, partial, have)


def _receive(response: Any, partial: _Partial, have: int) -> str | None:
    start, total = _range_of(response)
    if response.status == 206 and (start != have or partial.total not in (None, total)):
        partial.restart()
        return "the file there is another now"
    if response.status != 206:
        partial.restart()
    if total is not None and total > MAX_BYTES:
        raise UserError(f"{partial.url}: has {total:,} bytes", "no model is as large; check the URL")
    partial.total, partial.validator = total, _validator(response)
    partial.keep_notes()
    with open(partial.path, "ab") as file:
        cut = _copy(response, file, total)
    if partial.size() > MAX_BYTES:
        partial.restart()
        raise UserError(f"{partial.url}: goes on after {MAX_BYTES:,} bytes", "no model is as large; check the URL")
    if total is not None and partial.size() > total:  # trying again would go on for ever
        partial.restart()
        raise UserError(f"{partial.url}: sends more than its {total:,} bytes", "give another place by --url")
    return cut if total is None else None if partial.size() == total else cut or "the connection was cut"


def _copy(response: Any, file: BinaryIO, total: int | None) -> str | None:
    """Append what comes. Returns why it ended where the body says nothing of its length and was cut off."""
    with tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, disable=None) as progress:
        while file.tell() <= MAX_BYTES:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                return _reason(error)
            if not chunk:
                return None
            progress.update(file.write(chunk))
    return None


def _reason(error: Exception) -> str:
    """Why a request failed, in words of ours or of the system, never in those of the server."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    if isinstance(error, http.client.HTTPException):
        return f"its answer is no HTTP ({type(error).__name__})"
    return getattr(error, "strerror", None) or type(error).__name__


def _range_of(response: Any) -> tuple[int, int | None]:
    """First byte of an answer, and bytes of the whole file, as far as the server says."""
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        first, _, total = rest.partition("/")
        start = first.partition("-")[0]
        if unit == "bytes" and start.isdigit():
            return int(start), int(total) if total.isdigit() else None
        return -1, None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(response: Any) -> str | None:
    """What an If-Range may hold: a strong ETag, or else the date."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
