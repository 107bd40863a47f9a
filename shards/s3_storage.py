"""Objects on `s3://`: Amazon S3 and whatever speaks its protocol, behind the interface of a local folder.

Endpoint, region and credentials come from the usual AWS environment variables and configuration files. The client
repeats requests that fail; a body that breaks off is read on from the byte that was reached.
"""

import datetime
import hashlib
import io
import logging
import os
import random
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ResponseStreamingError,
)

from shards.errors import UserError
from shards.storage import TEMPORARY_PREFIX, CorruptObjectError, ShortObjectError, name_of_leftover

log = logging.getLogger(__name__)

MAX_BROKEN_READS = 6
"""Bodies that break off in a row, with no byte in between, before a read is given up."""
_MAX_CONFLICTS = 6
# What of a chunk has come when a body breaks off is lost: small ones lose little.
_CHUNK = 1 << 16
_REQUESTS = Config(
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=30,
    max_pool_connections=32,
)
# One request holds 5 GB at most; few at once, since others need the network too.
_PARTS = TransferConfig(multipart_chunksize=16 << 20, multipart_threshold=16 << 20, max_concurrency=4)
_BROKEN_BODY = (HTTPClientError, IncompleteReadError, ResponseStreamingError)
_NO_ACCESS = (NoCredentialsError, PartialCredentialsError, NoRegionError)
_SEE_ENVIRONMENT = "check AWS_ENDPOINT_URL, AWS_REGION and the credentials in the environment or ~/.aws"


class S3Storage:
    """A prefix of a bucket: `s3://BUCKET/PREFIX`. May be used by several threads, and after a fork."""

    is_local = False

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{url}: no bucket", "give s3://BUCKET/PREFIX")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._client: Any = None
        self._client_pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_client": None}

    @property
    def client(self) -> Any:
        """The boto3 client of this process: its connections must not be shared with the one that it was forked from."""
        if self._client is None or self._client_pid != os.getpid():
            with self._explained(""):
                # A session of its own: making clients from the default one is not safe where threads do it.
                self._client, self._client_pid = boto3.session.Session().client("s3", config=_REQUESTS), os.getpid()
        return self._client

    def check(self) -> None:
        """Raise UserError if there is nothing below the prefix, or it cannot be listed."""
        with self._explained(""):
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)
        if not answer.get("KeyCount"):
            raise UserError(f"{self.url}: nothing lies there", "check the URL, or run the stage that makes it first")

    def below(self, name: str, *, create: bool = False) -> "S3Storage":
        """The prefix `name` below this one; there is nothing to make."""
        return S3Storage(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises FileNotFoundError if there is none, CorruptObjectError if it is damaged."""
        content = io.BytesIO()
        for chunk in self.chunks(name):
            content.write(chunk)
        return content.getvalue()  # no copy, as it would be of a bytearray

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read a whole object piece by piece; its sha256 is compared at the end with the one it was written with.

        Raises FileNotFoundError if there is none, CorruptObjectError if it is damaged.
        """
        sha256 = hashlib.sha256()
        written_with: str | None = None
        try:
            for chunk, metadata in self._parts(name, 0, None):
                written_with = metadata.get("sha256")
                if written_with:
                    sha256.update(chunk)
                yield chunk
        except FlexibleChecksumError as error:
            raise CorruptObjectError(f"{self.url}/{name}: its checksum is not that of its bytes: {error}") from error
        if written_with and written_with != sha256.hexdigest():
            raise CorruptObjectError(f"{self.url}/{name}: its sha256 is not the one it was written with")

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`. Raises FileNotFoundError, ShortObjectError if the object ends before."""
        if not length:
            return b""
        content = bytearray()
        for chunk, _ in self._parts(name, offset, offset + length):
            content += chunk
        if len(content) < length:
            raise ShortObjectError(f"{self.url}/{name}: ends before byte {offset + length}")
        return bytes(content)

    def size(self, name: str) -> int:
        """Size of an object in bytes. Raises FileNotFoundError if there is none."""
        return int(self._head(name)["ContentLength"])

    def exists(self, name: str) -> bool:
        """Whether an object of this name is visible."""
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, suffix: str = "") -> list[str]:
        """Visible objects whose names end with `suffix`, sorted."""
        names = (name for name, _ in self._listing(""))
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def names_below(self) -> Iterator[str]:
        """Visible objects below this prefix, however deep, as `below/name`, in the order of their keys."""
        for name, _ in self._listing("", deep=True):
            if not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                yield name

    def replace(self, name: str, content: bytes) -> None:
        """Put a small object under `name`, in one step, whether or not there was one."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self._explained(name):
            self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content, Metadata={"sha256": sha256})

    def put_file(self, name: str, path: Path) -> None:
        """Copy a local file of any size to `name`, in one step, whether or not there was one.

        Raises FileNotFoundError if there is no such file.
        """
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with self._explained(name):
                self.client.upload_fileobj(
                    file, self.bucket, self._key(name), ExtraArgs={"Metadata": {"sha256": sha256}}, Config=_PARTS
                )

    def delete(self, name: str) -> None:
        """Remove an object; none there is no error."""
        with self._explained(name):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def new_temporary(self, name: str) -> Path:
        """A local path to write to, to be given to `commit` or `discard`."""
        return Path(tempfile.gettempdir(), f"{self._temporary_prefix()}{name}-{uuid.uuid4().hex}")

    def commit(self, temporary: Path, name: str) -> bool:
        """Make a finished temporary file visible as `name`, durably and only once, by one conditional PUT.

        Returns False, and drops the file, if another writer was first.
        """
        writer = uuid.uuid4().hex
        try:
            with open(temporary, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if self._put_if_absent(name, file, {"sha256": sha256, "writer": writer}):
                    return True
        finally:
            self.discard(temporary)
        # Told also to a writer that has won: when the answer to its PUT is lost, the client repeats the request.
        return self._head(name)["Metadata"].get("writer") == writer

    def discard(self, temporary: Path) -> None:
        """Drop a temporary file."""
        temporary.unlink(missing_ok=True)

    def discard_leftovers(self, min_age_seconds: float, committed: Collection[str] = ()) -> int:
        """Drop temporary objects that nobody wrote to for so long: those of writers that died. Returns how many.

        Those for a name in `committed` go whatever their age: should their writer live, it has lost. Of this user's
        temporary files on this machine, those of this prefix go by their age.
        """
        now = datetime.datetime.now(datetime.UTC)
        leftovers = [
            name
            for name, changed in self._listing(TEMPORARY_PREFIX)
            if name_of_leftover(name) in committed or (now - changed).total_seconds() >= min_age_seconds
        ]
        for name in leftovers:
            self.delete(name)
        return len(leftovers) + self._discard_local_leftovers(min_age_seconds)

    def _temporary_prefix(self) -> str:
        """How the names of this prefix's files in the system's temporary folder begin: others use the folder too."""
        return f"{TEMPORARY_PREFIX}xmodal-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}-"

    def _discard_local_leftovers(self, min_age_seconds: float) -> int:
        num_dropped = 0
        for leftover in Path(tempfile.gettempdir()).glob(f"{self._temporary_prefix()}*"):
            with suppress(FileNotFoundError):  # its writer was faster
                status = leftover.lstat()
                if status.st_uid == os.getuid() and time.time() - status.st_mtime >= min_age_seconds:
                    leftover.unlink()
                    num_dropped += 1
        return num_dropped

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _put_if_absent(self, name: str, file: BinaryIO, metadata: dict[str, str]) -> bool:
        """One conditional PUT; False where the server says that there is such an object."""
        for attempt in range(_MAX_CONFLICTS):
            file.seek(0)
            try:
                with self._explained(name):
                    self.client.put_object(
                        Bucket=self.bucket, Key=self._key(name), Body=file, IfNoneMatch="*", Metadata=metadata
                    )
            except FileExistsError:
                return False
            except BlockingIOError:
                # Another writer's PUT of the same name is under way, and its end not known yet.
                time.sleep(0.2 * 2**attempt * random.uniform(0.5, 1.5))
            else:
                return True
        raise OSError(f"{self.url}/{name}: other writers' conflicting requests do not end")

    def _head(self, name: str) -> dict[str, Any]:
        with self._explained(name):
            return self.client.head_object(Bucket=self.bucket, Key=self._key(name))

    def _listing(self, start: str, *, deep: bool = False) -> Iterator[tuple[str, datetime.datetime]]:
        """Names that begin with `start`, and when each was last written; those in deeper prefixes if asked for."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(start), **({} if deep else {"Delimiter": "/"})
        )
        with self._explained(""):
            for page in pages:
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(self._key(""))
                    if name:
                        yield name, entry["LastModified"]

    def _parts(self, name: str, start: int, stop: int | None) -> Iterator[tuple[bytes, dict[str, str]]]:
        """Bytes from `start` to `stop` (or the object's end), each piece with the object's own metadata.

        A body that breaks off is read on from where it broke. Raises FileNotFoundError, and OSError when it breaks off
        `MAX_BROKEN_READS` times with no byte in between, or the object is replaced meanwhile.
        """
        condition: dict[str, str] = {}
        reached, num_broken = start, 0
        while True:
            try:
                with self._explained(name):
                    answer = self.client.get_object(
                        Bucket=self.bucket, Key=self._key(name), **_range(reached, stop), **condition
                    )
                condition = {"IfMatch": answer["ETag"]}
                end = reached + int(answer["ContentLength"])
                while chunk := answer["Body"].read(_CHUNK):
                    reached, num_broken = reached + len(chunk), 0
                    yield chunk, answer["Metadata"]
                if reached < end:
                    raise IncompleteReadError(actual_bytes=reached, expected_bytes=end)
                return
            except _BROKEN_BODY as error:
                num_broken += 1
                if num_broken >= MAX_BROKEN_READS:
                    raise OSError(f"{self.url}/{name}: cannot be read beyond byte {reached}: {error}") from error
                log.debug("%s/%s: broke off at byte %d: %s", self.url, name, reached, error)
                time.sleep(min(5.0, 0.1 * 2**num_broken) * random.uniform(0.5, 1.5))

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Let the client's errors become those of the interface."""
        url = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except ClientError as error:
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code == "NoSuchBucket":
                raise UserError(f"{url}: no such bucket", "make the bucket, or check the URL") from error
            if status == 404:
                raise FileNotFoundError(url) from error
            if status == 416:
                raise ShortObjectError(f"{url}: ends before the bytes that were asked for") from error
            if status == 412 and error.operation_name == "PutObject":
                raise FileExistsError(url) from error
            if status == 409 and error.operation_name == "PutObject":
                raise BlockingIOError(url) from error
            if status == 412:
                raise OSError(f"{url}: was replaced while it was read") from error
            if status in (401, 403):
                raise UserError(f"{url}: access refused ({code})", _SEE_ENVIRONMENT) from error
            raise OSError(f"{url}: {error}") from error
        except _NO_ACCESS as error:
            raise UserError(f"{url}: {error}", _SEE_ENVIRONMENT) from error
        except (HTTPClientError, botocore.exceptions.ConnectionError) as error:
            raise UserError(f"{url}: no answer: {error}", _SEE_ENVIRONMENT) from error
        except BotoCoreError as error:
            raise OSError(f"{url}: {error}") from error


def _range(start: int, stop: int | None) -> dict[str, str]:
    """The argument for a part of an object; none for a whole one, since an empty object has no range."""
    if stop is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-{stop - 1}"}
