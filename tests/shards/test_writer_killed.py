"""Writers that are killed: what they leave, and what the next step makes of it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from written_shards import failures, members

from shards.dataset import finish
from shards.index import read_index
from shards.storage import LocalStorage
from shards.writer import Sample, recover_failures, write_shard

MakeSamples = Callable[..., list[Sample]]

# The process that writes, and dies where it is told to. It kills itself as the kernel would: no handler, no `finally`.
DYING_WRITE = """
import os, signal, sys
from shards import writer
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_after(function):
    def call(*arguments, **options):
        function(*arguments, **options)
        die()
    return call

def samples():
    for number in range(30):
        if number == 20 and point == "between samples":
            die()
        yield Sample(key=f"dead-{number}", image=b"%d" % number * 100000, image_extension="png", fields={"n": number})

folder, point = sys.argv[1:]
if point == "before the failures are staged":
    LocalStorage.replace = die
if point == "while the failures are staged":
    os.replace = die
if point in ("while the index gets its name", "while the failures get their name"):
    replace, times = os.replace, iter(range(9))
    os.replace = lambda *paths: die() if next(times) == (1 if "index" in point else 2) else replace(*paths)
if point == "before the commit":
    LocalStorage.commit = die
if point == "just before the tar is linked":
    os.link = die
if point == "just after the tar is linked":
    os.link = dies_after(os.link)
if point == "after the commit":
    writer.recover_failures = die
if point == "before the failures get their name":
    LocalStorage.read = die
if point == "after the failures got their name":
    LocalStorage.delete = die
write_shard(LocalStorage(folder), "000001", samples(), [{"attempt": "the dead one"}])
"""
BEFORE_THE_COMMIT = [
    "between samples",
    "before the failures are staged",
    "while the failures are staged",
    "before the commit",
    "just before the tar is linked",
]
AFTER_THE_COMMIT = [
    "just after the tar is linked",
    "after the commit",
    "while the index gets its name",
    "before the failures get their name",
    "while the failures get their name",
    "after the failures got their name",
]


def files_once_finished(storage: LocalStorage) -> list[str]:
    """What lies there, hidden or not, but for the dataset's summaries."""
    finish(storage, describe_shard=lambda index: {}, describe_dataset=lambda shards: {})
    return sorted(set(os.listdir(storage.folder)) - {"dataset.json", "_info.json", "sizes.json"})


def write_and_die(storage: LocalStorage, point: str) -> None:
    ended = subprocess.run([sys.executable, "-c", DYING_WRITE, str(storage.folder), point], cwd="/")
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", BEFORE_THE_COMMIT)
def test_a_writer_killed_before_the_commit_leaves_nothing_visible_and_the_next_one_writes_its_own(
    storage: LocalStorage, make_samples: MakeSamples, point: str
) -> None:
    write_and_die(storage, point)
    assert storage.names() == []
    samples = make_samples(2)
    assert write_shard(storage, "000001", samples, [{"attempt": "the next"}]).won
    assert members(storage.read("000001.tar"))[0] == ("post0000-0.jpg", samples[0].image)
    assert failures(storage, "000001") == [{"attempt": "the next"}]
    assert files_once_finished(storage) == ["000001.failures.jsonl", "000001.parquet", "000001.tar"]


@pytest.mark.parametrize("next_step", ["recover", "write"])
@pytest.mark.parametrize("point", AFTER_THE_COMMIT)
def test_a_writer_killed_after_the_commit_leaves_a_whole_shard_and_the_next_step_finds_its_failures(
    storage: LocalStorage, make_samples: MakeSamples, point: str, next_step: str
) -> None:
    write_and_die(storage, point)
    content = storage.read("000001.tar")
    assert [name for name, _ in members(content)][-1] == "dead-29.json"
    if next_step == "recover":
        recover_failures(storage, "000001")
    else:
        assert not write_shard(storage, "000001", make_samples(2), [{"attempt": "the next"}]).won
    assert storage.read("000001.tar") == content
    assert failures(storage, "000001") == [{"attempt": "the dead one"}]
    # The index is made by whoever needs it, where its writer died before.
    assert read_index(storage, "000001.tar").num_rows == 30
    assert files_once_finished(storage) == ["000001.failures.jsonl", "000001.parquet", "000001.tar"]


WRITE_MANY = """
import sys
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
storage = LocalStorage(sys.argv[1])
print("started", flush=True)
for unit in range(60):
    if storage.exists(f"{unit:03d}.tar"):
        continue
    samples = [
        Sample(key=f"{unit}-{number}", image=b"%d" % unit * 20000, image_extension="png", fields={"unit": unit})
        for number in range(5)
    ]
    write_shard(storage, f"{unit:03d}", samples, [{"unit": unit}])
"""


def test_a_writer_killed_at_any_time_and_started_again_ends_with_every_shard_whole(storage: LocalStorage) -> None:
    random.seed(0)
    command = [sys.executable, "-c", WRITE_MANY, str(storage.folder)]
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.03))
            process.kill()
        for name in storage.names(".tar"):
            assert len(members(storage.read(name))) == 10
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd="/", check=True)
    assert storage.names(".tar") == [f"{unit:03d}.tar" for unit in range(60)]
    for unit in range(60):
        name = f"{unit:03d}"
        recover_failures(storage, name)
        assert [content for _, content in members(storage.read(f"{name}.tar"))[::2]] == [b"%d" % unit * 20000] * 5
        assert failures(storage, name) == [{"unit": unit}]
