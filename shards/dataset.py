"""A dataset: a folder of committed shards, and the summaries that `finish` derives from their indexes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from shards.errors import UserError
from shards.generations import generation_of, newest_generations
from shards.index import index_metadata, read_index
from shards.json_object import parse_json_object
from shards.storage import LEFTOVER_AGE_SECONDS, Storage
from shards.writer import recover_failures, temporary_names

SCHEMA_VERSION = 1

DescribeShard = Callable[[pa.Table], dict[str, Any]]
"""From the index of a shard to what `dataset.json` says of its samples, such as a histogram of their labels."""


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What `dataset.json` says of one shard."""

    name: str
    samples: int
    bytes: int
    sha256: str
    description: dict[str, Any]
    """What the caller of `finish` says of the shard's samples, such as a histogram of their labels."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in `dataset.json`."""
        fields = asdict(self)
        return fields | fields.pop("description")


def shard_names(storage: Storage) -> list[str]:
    """Names of the committed tars, sorted; of one from which samples were scrubbed, only what it became."""
    newest = newest_generations(name.removesuffix(".tar") for name in storage.names(".tar"))
    return sorted(f"{stem}.tar" for stem in newest.values())


def finish(
    storage: Storage,
    *,
    describe_shard: DescribeShard,
    describe_dataset: Callable[[Sequence[ShardSummary]], dict[str, Any]],
) -> list[ShardSummary]:
    """Index every shard and write the summaries that other tools read; drop what dead writers left behind.

    Writes `dataset.json` (ours: what `describe_dataset` says, and per shard its samples, bytes, sha256 and what
    `describe_shard` says of its index), `_info.json` (timm's reader) and `sizes.json` (open_clip's and webdataset's).
    Doing it again changes nothing.
    """
    summaries = []
    committed: set[str] = set()
    for name in shard_names(storage):
        stem = name.removesuffix(".tar")
        recover_failures(storage, stem)
        committed.update(temporary_names(stem))
        summaries.append(_summary(storage, name, describe_shard))
    storage.discard_leftovers(LEFTOVER_AGE_SECONDS, committed)
    document = {"schema_version": SCHEMA_VERSION, **describe_dataset(summaries)}
    _write_summaries(storage, document | {"shards": [shard.to_json() for shard in summaries]})
    return summaries


def name_newest(storage: Storage, describe_shard: DescribeShard, before_write: Callable[[], None]) -> None:
    """Let the summaries of a finished dataset speak of the newest generation of each shard; all else in them stays.

    Until `dataset.json` is replaced, in one step, it speaks of the older ones, which must still be there. What is to be
    written is made of many indexes, and `before_write()` is called once it is there; it may raise.
    """
    document = read_dataset(storage)
    newest = newest_generations(name.removesuffix(".tar") for name in storage.names(".tar"))
    shards = [_newest_entry(storage, shard, newest, describe_shard) for shard in document["shards"]]
    if shards != document["shards"]:
        before_write()
        _write_summaries(storage, document | {"shards": sorted(shards, key=lambda shard: shard["name"])})


def _newest_entry(
    storage: Storage, entry: dict[str, Any], newest: Mapping[str, str], describe_shard: DescribeShard
) -> dict[str, Any]:
    stem = entry["name"].removesuffix(".tar")
    new_stem = newest.get(generation_of(stem)[0], stem)
    return entry if new_stem == stem else entry | _summary(storage, f"{new_stem}.tar", describe_shard).to_json()


def _summary(storage: Storage, name: str, describe_shard: DescribeShard) -> ShardSummary:
    index = read_index(storage, name)
    metadata = index_metadata(index)
    return ShardSummary(
        name=name,
        samples=index.num_rows,
        bytes=int(metadata["tar_bytes"]),
        sha256=metadata["tar_sha256"],
        description=describe_shard(index),
    )


def _write_summaries(storage: Storage, document: dict[str, Any]) -> None:
    """`document` last, since it is what says that the dataset is finished."""
    shards = document["shards"]
    _write_json(storage, "_info.json", _timm_info(shards))
    _write_json(storage, "sizes.json", {shard["name"]: shard["samples"] for shard in shards})
    _write_json(storage, "dataset.json", document)


def read_dataset(storage: Storage) -> dict[str, Any]:
    """The `dataset.json` of a finished dataset. Raises UserError if it is not finished or of a later version."""
    try:
        content = storage.read("dataset.json")
    except FileNotFoundError:
        raise UserError(
            f"{storage.url}: no dataset.json, so this dataset is not finished",
            "run `xmodal label` to its end first",
        ) from None
    remedy = "run `xmodal label` again"
    required = {"schema_version": int, "shards": list}
    dataset = parse_json_object(content, f"{storage.url}/dataset.json", remedy, required)
    if dataset.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{storage.url}/dataset.json: schema_version: {dataset.get('schema_version')!r} is not {SCHEMA_VERSION}",
            "use the version of xmodal that wrote this dataset",
        )
    for shard in dataset["shards"]:
        if not isinstance(shard, dict) or not {"name", "samples", "sha256"} <= shard.keys():
            raise UserError(f"{storage.url}/dataset.json: shards: one without name, samples or sha256", remedy)
    return dataset


def _timm_info(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "splits": {
            "train": {
                "name": "train",
                "num_samples": sum(shard["samples"] for shard in shards),
                "filenames": [shard["name"] for shard in shards],
                "shard_lengths": [shard["samples"] for shard in shards],
            }
        }
    }


def _write_json(storage: Storage, name: str, value: Any) -> None:
    storage.replace(name, json.dumps(value, indent=2).encode() + b"\n")
