"""A dataset of many small shards, some of whose posts are to be forgotten, and what must be true of it at any time."""

import io
import json
import os
import tarfile
import time
from collections import Counter
from pathlib import Path

from made_pictures import jpeg

from shards.dataset import finish, read_dataset
from shards.index import build_index
from shards.storage import TEMPORARY_PREFIX, LocalStorage, Storage
from shards.writer import Sample, write_shard

SAMPLES_PER_SHARD = 5
RETRY_EVERY = 4
"""One unit of so many has a round of retries, which brought two more posts, `FIRST_RETRIED` and so on."""
FIRST_RETRIED = 1000
AUTHORS = ("ada", "bob", "cyd", "dan", "eve", "fay", "gil")


def write_dataset(storage: Storage, num_shards: int) -> None:
    """A picture a post, and in each shard a failure of another post; the posts are the authors' in turn.

    Dead writers have left temporary files, all of posts of `eve`'s: of shards that are there, and of one that is not.
    """
    for number in range(num_shards):
        samples = [made_sample(number * SAMPLES_PER_SHARD + place) for place in range(SAMPLES_PER_SHARD)]
        lost = {
            "post_id": f"lost{number}",
            "author": AUTHORS[number % len(AUTHORS)],
            "url": f"https://x.org/lost{number}",
        }
        write_shard(storage, f"{number:06d}", samples, [lost])
        if number % RETRY_EVERY == 0:
            first = FIRST_RETRIED + number
            write_shard(storage, f"{number:06d}-retry1", [made_sample(first), made_sample(first + 1)], [lost])
    storage.replace("recipe.json", b"{}")
    finish(storage, describe_shard=lambda _: {"label_histogram": {}}, describe_dataset=lambda _: {"recipe": "made"})

    _leave_temporary_files(storage, num_shards)


def _leave_temporary_files(storage: Storage, num_shards: int) -> None:
    for name in ("000001.failures", "000004-retry1.failures", "000000-scrubbed1.failures"):
        storage.replace(f"{TEMPORARY_PREFIX}{name}-abc", b'{"post_id":"lost4","author":"eve"}\n')
    if isinstance(storage, LocalStorage):  # S3's temporary tars never lie in the bucket
        for name in ("000000.tar", "000003.parquet", "dataset.json", f"{num_shards:06d}.tar"):
            temporary = storage.new_temporary(name)
            temporary.write_bytes(made_sample(4).image)
            is_old = name in ("dataset.json", f"{num_shards:06d}.tar")
            os.utime(temporary, times=(time.time() - 61 * is_old,) * 2)


def let_a_minute_pass(storage: Storage) -> None:
    """For what a killed run has left: its marker, and its temporary files."""
    for name in storage.names(".json"):
        if name.startswith("scrub-"):
            storage.replace(name, json.dumps({"updated": time.time() - 61}).encode())
    if isinstance(storage, LocalStorage):
        for temporary in storage.folder.glob(f"{TEMPORARY_PREFIX}*"):
            os.utime(temporary, times=(time.time() - 61,) * 2)


def made_sample(number: int) -> Sample:
    return Sample(
        key=f"post{number}-0",
        image=jpeg(24, 20, seed=number),
        image_extension="jpg",
        fields={
            "soft_label": [0.1, 0.2, 0.7],
            "teacher": {"name": "made", "revision": "1"},
            "post_id": f"post{number}",
            "author": AUTHORS[number % len(AUTHORS)],
        },
        text=f"words of post {number}",
    )


def samples_of(storage: Storage, names: list[str]) -> Counter[tuple[str, bytes]]:
    """Key and bytes (of all members, headers too) of the samples of some tars: how often they are there."""
    found: Counter[tuple[str, bytes]] = Counter()
    for name in names:
        tar = storage.read(name)
        build_index(tar, name)  # which refuses a tar that is not whole
        parts: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                key = member.name.partition(".")[0]
                parts[key] = parts.get(key, b"") + tar[member.offset : archive.offset]
            assert sum(map(len, parts.values())) == archive.offset, "there is something between the samples"
            assert not tar[archive.offset :].strip(b"\0")
        found.update(parts.items())
    return found


def visible_samples(storage: Storage) -> Counter[tuple[str, bytes]]:
    """Those that a reader of `dataset.json` sees, who begins anew where it is replaced meanwhile."""
    while True:
        names = [shard["name"] for shard in read_dataset(storage)["shards"]]
        try:
            return samples_of(storage, names)
        except FileNotFoundError:
            assert names != [shard["name"] for shard in read_dataset(storage)["shards"]]


def write_forgotten(folder: Path, posts: list[int], author: str) -> list[str]:
    """Files for `xmodal forget`, as arguments."""
    (folder / "posts.jsonl").write_text("".join(json.dumps({"id": f"post{number}"}) + "\n" for number in posts))
    (folder / "authors.txt").write_text(f"{author}\n")
    return ["--posts", str(folder / "posts.jsonl"), "--authors", str(folder / "authors.txt")]


def number_of(key: str) -> int:
    """Of a sample's post."""
    return int(key.removeprefix("post").removesuffix("-0"))


def is_forgotten(key: str, posts: list[int], author: str) -> bool:
    number = number_of(key)
    return number in posts or AUTHORS[number % len(AUTHORS)] == author
