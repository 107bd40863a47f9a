"""Shards without the samples of forgotten posts: written as new generations, then named in the summaries, then the old
ones deleted.

At every moment, each sample that stays is in exactly one of the shards that `dataset.json` names. A run that is killed
leaves new generations that nobody names yet, or old ones that nobody names any more; the next run goes on from there.
"""

import tarfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from shards.dataset import DescribeShard, name_newest, shard_names
from shards.errors import UserError
from shards.generations import generation_of, next_generation, older_generations
from shards.index import build_index, index_name, read_index
from shards.json_object import parse_json_object
from shards.storage import Storage
from shards.tar_samples import key_and_extension, open_tar
from shards.tombstones import Tombstones, forgotten_rows
from shards.writer import recover_failures, temporary_names, write_tar

MAX_CONCURRENT_SHARDS = 4
"""Each is held in memory twice while it is rewritten."""


@dataclass(frozen=True, kw_only=True)
class ScrubSummary:
    """What a run of `scrub` has done itself; one that it went on from had done the rest."""

    samples: int
    """That are in no shard any more."""
    shards: int
    """Written anew without them."""
    deleted: int
    """Files of older generations: tars, indexes, lists of failures."""


def scrub(
    storage: Storage, tombstones: Tombstones, describe_shard: DescribeShard, *, leftover_age_seconds: float
) -> ScrubSummary:
    """Take the samples and the failures of forgotten posts out of all shards. Run again after a crash, it goes on.

    Nobody else may write to the dataset meanwhile: then a temporary file that was not written to for
    `leftover_age_seconds` is a dead writer's, and is deleted. Raises UserError for a shard that cannot be read, and
    where another run is at the same work.
    """
    first_names = shard_names(storage)
    _recover_all_failures(storage, first_names)
    with ThreadPoolExecutor(MAX_CONCURRENT_SHARDS) as pool:
        counts = list(pool.map(lambda name: _scrub_shard(storage, name, tombstones), first_names))
    if storage.exists("dataset.json"):
        name_newest(storage, describe_shard)
    older = older_generations(storage.names())
    for name in older:
        storage.delete(name)
    tars = {name for name in (*first_names, *older, *shard_names(storage)) if name.endswith(".tar")}
    storage.discard_leftovers(leftover_age_seconds, {name for tar in tars for name in _written_for(tar)})
    return ScrubSummary(samples=sum(counts), shards=sum(count > 0 for count in counts), deleted=len(older))


def without_samples(tar: bytes, keys: Collection[str]) -> bytes:
    """The bytes of a tar without the members of some samples; all other members keep theirs, headers and all."""
    content = memoryview(tar)
    kept = []
    start = 0
    with open_tar(tar) as archive:
        for member in archive:
            if member.isfile() and key_and_extension(member.name)[0] in keys:
                kept.append(content[start : member.offset])
                start = archive.offset  # behind the member's last block
        kept.append(content[start : archive.offset])
    members = b"".join(kept)
    end = len(members) + 2 * tarfile.BLOCKSIZE
    return members + bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE)


def _written_for(tar_name: str) -> tuple[str, ...]:
    """The names under which a writer of a shard begins temporary files."""
    stem = tar_name.removesuffix(".tar")
    return *temporary_names(stem), index_name(tar_name), f"{stem}.failures.jsonl"


def _scrub_shard(storage: Storage, name: str, tombstones: Tombstones) -> int:
    """Write the next generation of a shard if it holds samples of forgotten posts. Returns how many."""
    stem = name.removesuffix(".tar")
    failures = _read_failures(storage, stem)
    kept_failures = _without_forgotten(failures, f"{storage.url}/{stem}.failures.jsonl", tombstones)
    if not forgotten_rows(read_index(storage, name), tombstones).any():
        if kept_failures != failures:
            storage.replace(f"{stem}.failures.jsonl", kept_failures)
        return 0
    # From here on by the tar itself: an index is only what somebody wrote beside it.
    tar = storage.read(name)
    index = build_index(tar, f"{storage.url}/{name}")
    keys = index["key"].filter(pa.array(forgotten_rows(index, tombstones))).combine_chunks()
    forgotten = pc.is_in(index["key"], value_set=keys)
    scrubbed = without_samples(tar, frozenset(keys.to_pylist()))
    left = build_index(scrubbed, f"{storage.url}/{name}, scrubbed")
    assert left["key"].equals(index["key"].filter(pc.invert(forgotten))), f"{name}: scrubbing lost another sample"
    if not write_tar(storage, next_generation(stem), scrubbed, left, kept_failures):
        raise UserError(
            f"{storage.url}/{next_generation(stem)}.tar: another `xmodal forget --scrub` has just written it",
            "let that one end, then run this again",
        )
    return index.num_rows - left.num_rows


def _recover_all_failures(storage: Storage, names: Collection[str]) -> None:
    """Give the failures that a dead writer left under a temporary name their own, so that they are scrubbed too."""
    has_failures = storage.exists("recipe.json")  # tars that others made have none
    there = set(storage.names(".failures.jsonl"))
    for stem in (name.removesuffix(".tar") for name in names):
        if f"{stem}.failures.jsonl" not in there and (has_failures or generation_of(stem)[1]):
            recover_failures(storage, stem)


def _read_failures(storage: Storage, stem: str) -> bytes:
    try:
        return storage.read(f"{stem}.failures.jsonl")
    except FileNotFoundError:
        return b""


def _without_forgotten(failures: bytes, url: str, tombstones: Tombstones) -> bytes:
    kept = []
    for line in failures.splitlines(keepends=True):
        failure = parse_json_object(line, url, "run `xmodal label` again, to its end")
        if not tombstones.hold(failure.get("post_id"), failure.get("author")):
            kept.append(line)
    return b"".join(kept)
