"""Real S3 servers over HTTP on loopback, each for as long as a block lasts: moto's, and SeaweedFS."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret12345"
BUCKET = "bucket"


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets to reach a server; nothing of this machine's own configuration."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto() -> Iterator[str]:
    """moto's server in a process of its own, with BUCKET in it. Yields its endpoint."""
    port = _free_port()
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port) as endpoint:
        yield endpoint


@contextmanager
def seaweedfs() -> Iterator[str]:
    """SeaweedFS with signatures checked, and BUCKET in it. Yields its endpoint."""
    weed = Path(sys.executable).parent / "weed"
    # Each of its ports takes another one, 10,000 higher, for gRPC.
    ports = {name: _free_port(below=50_000) for name in ("master", "volume", "filer", "s3")}
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir="/tmp"))
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = {"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(identities))
    command = [
        str(weed), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}.port={port}" for name, port in ports.items()), f"-s3.config={folder / 's3.json'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
    ]  # fmt: skip
    try:
        with _running(command, ports["s3"], GOMEMLIMIT="400MiB") as endpoint:
            yield endpoint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def client(endpoint: str):
    """A client of the tests' own, to look at what really lies on a server, and to damage it."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )


@contextmanager
def _running(command: list[str], port: int, **variables: str) -> Iterator[str]:
    """A server from its first answer to the end of the block."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables, start_new_session=True)
        try:
            endpoint = f"http://127.0.0.1:{port}"
            _make_bucket(endpoint, process, log)
            yield endpoint
        finally:
            process.kill()  # what it holds is thrown away
            process.wait()


def _make_bucket(endpoint: str, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client(endpoint).create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):  # not there yet; each server says so in ways of its own
            log.seek(0)
            assert process.poll() is None, log.read()[-3000:]
            assert time.monotonic() < deadline, log.read()[-3000:]
            time.sleep(0.1)
        else:
            return


def _free_port(below: int = 65_536) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < below:
            return port
