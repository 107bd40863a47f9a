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
from typing import Any

import forget_datasets as made
import pyarrow.parquet as pq
import pytest
import s3_servers

from shards.inspection import find_shards, verify_shards
from shards.storage import LocalStorage, Storage, open_storage
from shards.tombstones import read_tombstones
from xmodal import cli

ROOT = Path(__file__).parent.parent.parent
NUM_SHARDS = 30
STATES = ("both generations", "old ones left")
"""What a kill is to leave behind, some time; the second one lasts for milliseconds."""
MOST_KILLS = 90
"""It is killed more often than asked for until both were seen."""
SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
POSTS, AUTHOR = [0, 1, 2, 3, 4, 17, 33, 34, 80, 120, 1000, 1009], "eve"
"""All of the first shard, and here and there one, also of the retried; the author has a post in most shards."""


def command(dataset: str, forgotten: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "xmodal.cli", "forget", *forgotten, "--scrub", dataset]


def run(dataset: str, forgotten: Sequence[str], **variables: str) -> str:
    done = subprocess.run(
        command(dataset, forgotten), cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(dataset: str, forgotten: Sequence[str]) -> None:
    """The same in this process, which needs not start first."""
    assert cli.main(["forget", *forgotten, "--scrub", dataset]) == 0


def files(folder: Path) -> dict[str, bytes]:
    """All of them, the hidden ones too, but not the tombstones: they hold the time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kept_of(samples: Counter) -> Counter:
    return Counter({one: count for one, count in samples.items() if not made.is_forgotten(one[0], POSTS, AUTHOR)})


def assert_gone(contents: dict[str, bytes], samples: Counter) -> None:
    """No name, picture, text or member of a forgotten sample is in any file, unpacked where it is packed."""
    forgotten = samples - kept_of(samples)
    assert len(forgotten) >= 10
    names, pieces = [], []
    for key, members in forgotten:
        sample = made.made_sample(made.number_of(key))
        assert sample.text
        names += [key.removesuffix("-0"), sample.text]
        pieces += [members, sample.image]
    # The authors of the last ones are the one that is forgotten.
    named = re.compile(rf"""\b({"|".join(names)}|lost(4|11|18|25))\b|["']{AUTHOR}["']""".encode())
    for name, packed in contents.items():
        content = str(pq.read_table(io.BytesIO(packed)).to_pylist()).encode() if name.endswith(".parquet") else packed
        assert not named.search(content), name
        assert not any(piece in content for piece in pieces), name


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


def assert_ended_well(storage: Storage, contents: dict[str, bytes], before: Counter) -> None:
    """All that was to be forgotten is gone, and everything else is there once, for whoever reads the dataset."""
    kept = kept_of(before)
    assert made.samples_of(storage, storage.names(".tar")) == made.visible_samples(storage) == kept
    assert_gone(contents, before)
    assert not [name for name in contents if Path(name).name.startswith((".", "scrub-"))]
    assert len(storage.below("tombstones").names()) == 1


@pytest.mark.parametrize("num_kills", [9, pytest.param(300, marks=SLOW)])
def test_killed_at_any_time_and_run_again_it_loses_and_doubles_nothing(
    dataset: Path, tmp_path: Path, num_kills: int
) -> None:
    """It is killed three times in a row on one dataset; a copy of what each kill leaves is brought to its end."""
    forgotten = made.write_forgotten(tmp_path, POSTS, AUTHOR)
    undisturbed = Path(shutil.copytree(dataset, tmp_path / "undisturbed"))
    begun = time.monotonic()
    run(str(undisturbed), forgotten)
    seconds = time.monotonic() - begun
    expected = files(undisturbed)
    before = made.visible_samples(LocalStorage(dataset))
    kept = kept_of(before)
    num_tars = len(LocalStorage(dataset).names(".tar"))
    folder, copy = tmp_path / "killed", tmp_path / "copy"
    seen: Counter[str] = Counter()
    for number, is_due in enumerate(moments(folder, seconds, max(num_kills, MOST_KILLS))):
        if number >= num_kills and all(seen[state] for state in STATES):
            break
        if number % 3 == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(dataset, folder)
        storage = LocalStorage(folder)
        made.let_a_minute_pass(storage)
        process = subprocess.Popen(command(str(folder), forgotten), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not is_due():
            time.sleep(0.001)
        process.kill()
        process.wait()
        now = made.visible_samples(storage)
        assert now in (before, kept)
        everything = made.samples_of(storage, storage.names(".tar"))
        seen["both generations"] += now == before and any("scrubbed" in name for name in storage.names(".tar"))
        seen["old ones left"] += now == kept and len(storage.names(".tar")) > num_tars
        assert set(kept) <= set(everything) <= set(before)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        made.let_a_minute_pass(LocalStorage(copy))
        run_here(str(copy), forgotten)
        assert files(copy) == expected
        assert_ended_well(LocalStorage(copy), files(copy), before)
    assert all(seen[state] for state in STATES), seen
    assert not any(report.problems for report in verify_shards(find_shards(str(copy)), 1))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, str], Any]]:
    """An S3 server: how to reach it, and a client."""
    with s3_servers.moto() as endpoint:
        variables = s3_servers.environment(endpoint)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables, s3_servers.client(endpoint)


def names_below(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3_servers.BUCKET, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    """All of them but the tombstones, the hidden ones too."""
    names = [name for name in names_below(client, prefix) if "/tombstones/" not in name]
    return {name: client.get_object(Bucket=s3_servers.BUCKET, Key=name)["Body"].read() for name in names}


def test_it_does_the_same_on_s3(bucket: tuple[dict[str, str], Any], tmp_path: Path) -> None:
    variables, client = bucket
    forgotten = made.write_forgotten(tmp_path, POSTS, AUTHOR)
    storage = open_storage(f"s3://{s3_servers.BUCKET}/dataset", create=True)
    made.write_dataset(storage, num_shards=10)
    before = made.visible_samples(storage)
    run(storage.url, forgotten, **variables)
    assert_ended_well(storage, objects(client, "dataset/"), before)
    assert read_tombstones(storage).authors == {AUTHOR}
    assert "0 samples out of 0 shards; 0 files deleted" in run(storage.url, forgotten, **variables)


@pytest.mark.parametrize("num_kills", [3, pytest.param(60, marks=SLOW)])
def test_killed_on_s3_it_loses_and_doubles_nothing(
    bucket: tuple[dict[str, str], Any], tmp_path: Path, num_kills: int
) -> None:
    """Killed as it writes and as it deletes, in turn; each dataset is then brought to its end."""
    variables, client = bucket
    forgotten = made.write_forgotten(tmp_path, POSTS, AUTHOR)
    chance = random.Random(0)
    seen: Counter[str] = Counter()
    for number in range(MOST_KILLS):
        if number >= num_kills and all(seen[state] for state in STATES):
            break
        storage = open_storage(f"s3://{s3_servers.BUCKET}/killed{number}", create=True)
        made.write_dataset(storage, num_shards=10)
        before = made.visible_samples(storage)
        num_tars = len(storage.names(".tar"))
        count = chance.randint(1, 4)
        environment = os.environ | variables
        process = subprocess.Popen(
            command(storage.url, forgotten), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        while process.poll() is None:
            tars = [name for name in names_below(client, f"killed{number}/0") if name.endswith(".tar")]
            num_new = sum("scrubbed" in name for name in tars)
            if num_new >= count and (number % 2 == 0 or len(tars) - num_new <= num_tars - count):
                break
        process.kill()
        process.wait()
        now = made.visible_samples(storage)
        assert now in (before, kept_of(before))
        seen["both generations"] += now == before and any("scrubbed" in name for name in storage.names(".tar"))
        seen["old ones left"] += now != before and len(storage.names(".tar")) > num_tars
        made.let_a_minute_pass(storage)
        run_here(storage.url, forgotten)
        assert_ended_well(storage, objects(client, f"killed{number}/"), before)
    assert all(seen[state] for state in STATES), seen
