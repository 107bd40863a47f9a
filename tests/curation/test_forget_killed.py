"""The command `xmodal forget --scrub` as people run it: killed at any time and run again, and on S3."""

import io
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import forget_datasets as made
import pyarrow.parquet as pq
import pytest
import s3_servers

from shards.inspection import find_shards, verify_shards
from shards.storage import LocalStorage, open_storage
from shards.tombstones import read_tombstones

ROOT = Path(__file__).parent.parent.parent
NUM_SHARDS = 30
STATES = ("both generations", "old ones left")
"""What a kill is to leave behind, some time; the second one lasts for milliseconds."""
MOST_KILLS = 90
"""It is killed more often than asked for until both were seen."""
POSTS, AUTHOR = [0, 1, 2, 3, 4, 17, 33, 34, 80, 120], "eve"
"""All of the first shard, and here and there one; the author has a post in most shards."""


def command(dataset: str, forgotten: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "xmodal.cli", "forget", *forgotten, "--scrub", dataset]


def run(dataset: str, forgotten: Sequence[str], **variables: str) -> str:
    done = subprocess.run(
        command(dataset, forgotten), cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    """All of them, the hidden ones too, but not the tombstones: they hold the time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kept_of(samples: Counter) -> Counter:
    return Counter({one: count for one, count in samples.items() if not made.is_forgotten(one[0], POSTS, AUTHOR)})


def assert_gone(contents: dict[str, bytes], samples: Counter) -> None:
    """No name and no member of a forgotten sample is in any file, unpacked where it is packed."""
    forgotten = samples - kept_of(samples)
    assert len(forgotten) >= 10
    for name, packed in contents.items():
        content = str(pq.read_table(io.BytesIO(packed)).to_pylist()).encode() if name.endswith(".parquet") else packed
        for key, members in forgotten:
            assert not re.search(rf"\b{key.removesuffix('-0')}\b".encode(), content), name
            assert members not in content, name
        assert not re.search(rb"\blost4\b", content), name  # its author is the one that is forgotten


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forget") / "dataset"
    made.write_dataset(LocalStorage(folder, create=True), NUM_SHARDS)
    return folder


def moments(folder: Path, seconds: float, num_kills: int) -> Iterator[Callable[[], bool]]:
    """When to kill, in turn: after some time, once so many shards were written, once so many old ones are deleted."""
    chance = random.Random(0)
    for number in range(num_kills):
        count = chance.randint(1, NUM_SHARDS // 2)
        if number % 3 == 0:
            due = time.monotonic() + chance.uniform(0.2, 1) * seconds
            yield lambda due=due: time.monotonic() > due
        elif number % 3 == 1:
            yield lambda count=count: len(list(folder.glob("*-scrubbed1.tar"))) >= count
        else:
            yield lambda count=count: len(list(folder.glob("0000??.tar"))) <= NUM_SHARDS - count


@pytest.mark.parametrize("num_kills", [9, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_at_any_time_and_run_again_it_loses_and_doubles_nothing(
    dataset: Path, tmp_path: Path, num_kills: int
) -> None:
    forgotten = made.write_forgotten(tmp_path, POSTS, AUTHOR)
    undisturbed = Path(shutil.copytree(dataset, tmp_path / "undisturbed"))
    begun = time.monotonic()
    run(str(undisturbed), forgotten)
    seconds = time.monotonic() - begun
    before = made.visible_samples(LocalStorage(dataset))
    kept = kept_of(before)
    folder = tmp_path / "killed"
    seen: Counter[str] = Counter()
    for number, is_due in enumerate(moments(folder, seconds, max(num_kills, MOST_KILLS))):
        if number >= num_kills and all(seen[state] for state in STATES):
            break
        if number % 3 == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(dataset, folder)
        storage = LocalStorage(folder)
        process = subprocess.Popen(command(str(folder), forgotten), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not is_due():
            time.sleep(0.001)
        process.kill()
        process.wait()
        now = made.visible_samples(storage)
        assert now in (before, kept)
        everything = made.samples_of(storage, storage.names(".tar"))
        seen["both generations"] += now == before and any("scrubbed" in name for name in storage.names(".tar"))
        seen["old ones left"] += now == kept and len(storage.names(".tar")) > NUM_SHARDS
        assert set(kept) <= set(everything) <= set(before)
    assert all(seen[state] for state in STATES), seen
    run(str(folder), forgotten)
    left, expected = files(folder), files(undisturbed)
    assert {name: left[name] for name in left if not name.startswith(".tmp-")} == expected
    assert made.samples_of(storage, storage.names(".tar")) == kept
    assert_gone(left, before)
    assert len(os.listdir(folder / "tombstones")) == 1
    assert not any(report.problems for report in verify_shards(find_shards(str(folder)), 1))


def test_it_does_the_same_on_s3(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = made.write_forgotten(tmp_path, POSTS, AUTHOR)
    with s3_servers.moto() as endpoint:
        variables = s3_servers.environment(endpoint)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        storage = open_storage(f"s3://{s3_servers.BUCKET}/dataset", create=True)
        made.write_dataset(storage, num_shards=10)
        before = made.visible_samples(storage)
        run(storage.url, forgotten, **variables)
        assert made.visible_samples(storage) == kept_of(before)
        client = s3_servers.client(endpoint)
        listed = client.list_objects_v2(Bucket=s3_servers.BUCKET)["Contents"]
        contents = {
            entry["Key"]: client.get_object(Bucket=s3_servers.BUCKET, Key=entry["Key"])["Body"].read()
            for entry in listed
        }
        (recorded,) = [name for name in contents if "/tombstones/" in name]
        del contents[recorded]
        assert_gone(contents, before)
        assert read_tombstones(storage).authors == {AUTHOR}
        assert "0 samples out of 0 shards; 0 files deleted" in run(storage.url, forgotten, **variables)
