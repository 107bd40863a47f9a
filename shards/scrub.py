"""Shards without the samples of forgotten posts: written as new generations, then named in the summaries, then the old
ones deleted.

At every moment, each sample that stays is in exactly one of the shards that `dataset.json` names. A run that is killed
leaves new generations that nobody names yet, or old ones that nobody names any more; the next run goes on from there.
"""

import json
import tarfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from shards.dataset import DescribeShard, name_newest, shard_names
from shards.errors import UserError
from shards.generations import generation_of, next_generation, older_generations
from shards.index import ID_FIELDS, build_index, id_text, read_index
from shards.json_object import parse_json_object
from shards.scrub_marker import marked_as_scrubbing
from shards.storage import Storage
from shards.tar_samples import key_and_extension, open_tar, tar_members
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
    storage: Storage,
    tombstones: Tombstones,
    describe_shard: DescribeShard,
    *,
    refuse_writers: Callable[[], None],
    leftover_age_seconds: float,
) -> ScrubSummary:
    """Take the samples and the failures of forgotten posts out of all shards. Run again after a crash, it goes on.

    Nobody else may write to the dataset meanwhile: other scrubs are kept out by a marker, and `refuse_writers()`, which
    raises UserError where somebody else does, is asked to begin with, before the new shards are named and before the
    old ones are deleted. A temporary file that was not written to for `leftover_age_seconds` is a dead writer's, and is
    deleted. Raises UserError for a shard that cannot be read or would not keep its other samples, and where another run
    is at the same work.
    """
    with marked_as_scrubbing(storage) as require_alone:

        def refuse_others() -> None:
            require_alone()
            refuse_writers()

        refuse_others()
        is_ours = storage.exists("recipe.json")
        is_finished = storage.exists("dataset.json")
        if not is_ours and not is_finished:
            _refuse_summaries(storage)
        first_names = shard_names(storage)
        _recover_all_failures(storage, first_names, is_ours)
        try:
            with ThreadPoolExecutor(MAX_CONCURRENT_SHARDS) as pool:
                counts = list(pool.map(lambda name: _scrub_shard(storage, name, tombstones, is_ours), first_names))
            if is_finished:
                name_newest(storage, describe_shard, refuse_others)
        except FileNotFoundError:
            refuse_others()  # who may have deleted it
            raise
        refuse_others()
        older = _delete_older_generations(storage)
        tars = {name for name in (*first_names, *older, *shard_names(storage)) if name.endswith(".tar")}
        storage.discard_leftovers(leftover_age_seconds, {name for tar in tars for name in _written_for(tar)})
    return ScrubSummary(samples=sum(counts), shards=sum(count > 0 for count in counts), deleted=len(older))


def without_samples(tar: bytes, places: Collection[int]) -> bytes:
    """The bytes of a tar without the members of some samples; all other members keep theirs, headers and all.

    `places` are those of the samples in the tar, counted from 0: neighbours that agree in their key are a sample.
    """
    content = memoryview(tar)
    kept = []
    start = 0
    place, last_key = -1, None
    with open_tar(tar) as archive:
        for member in archive:
            if not member.isfile():
                continue
            key = key_and_extension(member.name)[0]
            place, last_key = place + (key != last_key), key
            if place in places:
                kept.append(content[start : member.offset])
                start = archive.offset  # behind the member's last block
        kept.append(content[start : archive.offset])
    members = b"".join(kept)
    end = len(members) + 2 * tarfile.BLOCKSIZE
    return members + bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE)


def _refuse_summaries(storage: Storage) -> None:
    """Raise UserError for lists of shards that others made: they would go on naming those that are deleted."""
    there = [name for name in ("_info.json", "sizes.json") if storage.exists(name)]
    if there:
        raise UserError(
            f"{storage.url}: {', '.join(there)}: made elsewhere, and would name shards that are not there any more",
            "move it away, run this again, and write it anew for the shards that are there then",
        )


def _delete_older_generations(storage: Storage) -> list[str]:
    """Delete all files of shards of which there is a newer generation. Returns their names."""
    deleted: list[str] = []
    # A reader that had begun with a tar may still have put an index beside it, so it is listed again.
    while older := older_generations(storage.names()):
        # Tars first: as long as one is there, a reader that finds no index beside it makes one.
        for name in sorted(older, key=lambda name: not name.endswith(".tar")):
            storage.delete(name)
        deleted += older
    return deleted


def _written_for(tar_name: str) -> tuple[str, ...]:
    """The names under which the writers of a shard and of its first generation begin temporary files."""
    stem = tar_name.removesuffix(".tar")
    return *temporary_names(generation_of(stem)[0]), *temporary_names(stem)


def _scrub_shard(storage: Storage, name: str, tombstones: Tombstones, is_ours: bool) -> int:
    """Write the next generation of a shard if it holds samples of forgotten posts. Returns how many."""
    stem, url = name.removesuffix(".tar"), f"{storage.url}/{name}"
    failures = _read_failures(storage, stem)
    kept_failures = _without_forgotten(failures, f"{storage.url}/{stem}.failures.jsonl", tombstones)
    tar = b""
    keys: list[str] = []
    forgotten: set[int] = set()
    # In one that was made elsewhere there may be samples without a picture, of which an index says nothing.
    if not is_ours or forgotten_rows(read_index(storage, name, columns=ID_FIELDS), tombstones).any():
        # From here on by the tar itself: an index is only what somebody wrote beside it.
        tar = storage.read(name)
        build_index(tar, url)  # which refuses a tar that is not whole
        keys, forgotten = _look_for(tar, tombstones, url)
    if not forgotten:
        if kept_failures != failures:
            storage.replace(f"{stem}.failures.jsonl", kept_failures)
        return 0
    scrubbed = without_samples(tar, forgotten)
    if _look_for(scrubbed, tombstones, url) != ([key for at, key in enumerate(keys) if at not in forgotten], set()):
        raise UserError(
            f"{url}: two of its samples have one key, and would be read as one without what stands between them",
            "write this shard anew, each sample with a key of its own",
        )
    left = build_index(scrubbed, f"{url}, scrubbed")
    if not write_tar(storage, next_generation(stem), scrubbed, left, kept_failures):
        raise UserError(
            f"{storage.url}/{next_generation(stem)}.tar: another `xmodal forget --scrub` has just written it",
            "let that one end, then run this again",
        )
    return len(forgotten)


def _look_for(tar: bytes, tombstones: Tombstones, url: str) -> tuple[list[str], set[int]]:
    """The keys of a tar's samples, with a picture or without, and the places of those of forgotten posts."""
    keys: list[str] = []
    forgotten: set[int] = set()
    for key, members in groupby(tar_members(tar), key=lambda member: key_and_extension(member[0])[0]):
        holds = {
            tombstones.hold(*_names(tar[offset : offset + length]))
            for name, offset, length in members
            if key_and_extension(name)[1] == "json"
        }
        if len(holds) > 1:
            raise UserError(
                f"{url}: two samples side by side have one key, and only one of them is to be forgotten",
                "write this shard anew, each sample with a key of its own",
            )
        if True in holds:
            forgotten.add(len(keys))
        keys.append(key)
    return keys, forgotten


def _names(json_member: bytes) -> tuple[str | None, str | None]:
    """The post and the author that a sample's JSON names, as in an index."""
    try:
        fields = json.loads(json_member)
    except (ValueError, RecursionError):
        return None, None
    post_id, author = (id_text(fields.get(name)) if isinstance(fields, dict) else None for name in ID_FIELDS)
    return post_id, author


def _recover_all_failures(storage: Storage, names: Collection[str], is_ours: bool) -> None:
    """Give the failures that a dead writer left under a temporary name their own, so that they are scrubbed too."""
    there = set(storage.names(".failures.jsonl"))
    for stem in (name.removesuffix(".tar") for name in names):
        # Tars that others made have none.
        if f"{stem}.failures.jsonl" not in there and (is_ours or generation_of(stem)[1]):
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
