"""Which samples of a view are of posts that were forgotten since it was made."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError
from shards.index import ID_FIELDS, read_index
from shards.tombstones import Tombstones, forgotten_rows, read_tombstones
from shards.view import View

MAX_CONCURRENT_INDEXES = 16


def refuse_forgotten(view: View) -> None:
    """Raise UserError where posts of a view were forgotten since it was made, or its shards are not there any more.

    Where nothing was forgotten since, it costs two listings for each dataset; else the indexes of its shards are read.
    """
    num_forgotten = int(_forgotten(view).sum())
    if num_forgotten:
        raise UserError(
            f"{view.url}: {num_forgotten} of its samples are of posts that were forgotten since it was made",
            "run `xmodal curate` again, which leaves them out, or give --allow_forgotten true",
        )


def without_forgotten(view: View) -> View:
    """The view without samples of posts that were forgotten since. Raises UserError for shards that are gone."""
    return replace(view, table=view.table.filter(pa.array(~_forgotten(view))))


def _forgotten(view: View) -> np.ndarray:
    """Which rows of a view are of posts to be forgotten, whichever of its datasets has to: bool `(n,)`."""
    forgotten = np.zeros(view.table.num_rows, dtype=bool)
    places = [(shard["dataset"], shard["shard"]) for shard in view.shards.select(["dataset", "shard"]).to_pylist()]
    # Always: a view that was made after posts were forgotten may be older than the scrub that took them out.
    _refuse_missing(view, places)
    found = [read_tombstones(storage) for storage in view.datasets]
    if [tombstones.fingerprint for tombstones in found] == _fingerprints(view):
        return forgotten
    everyone = Tombstones(
        frozenset().union(*(tombstones.post_ids for tombstones in found)),
        frozenset().union(*(tombstones.authors for tombstones in found)),
    )
    with ThreadPoolExecutor(MAX_CONCURRENT_INDEXES) as pool:
        keys_of_place = pool.map(lambda place: _forgotten_keys(view, place[0], place[1], everyone), places)
        keys = dict(zip(places, keys_of_place, strict=True))
    all_keys = pa.array(sorted(set().union(*keys.values())), type=view.table["key"].type)
    named_so = np.flatnonzero(pc.is_in(view.table["key"], value_set=all_keys).to_numpy())
    # The same key may stand in several datasets, and be forgotten as another post's in one of them.
    for number, row in zip(named_so, view.table.take(named_so).to_pylist(), strict=True):
        forgotten[number] = row["key"] in keys[row["dataset"], row["shard"]]
    return forgotten


def _fingerprints(view: View) -> list[str]:
    """What each dataset had to forget when the view was made; none where `view.json` does not say."""
    known, recipe = view.description.get("tombstones"), view.description.get("recipe")
    datasets = recipe.get("datasets") if isinstance(recipe, dict) else None
    if not (isinstance(known, dict) and isinstance(datasets, list)):
        return []
    # One with thresholds of its own is a section.
    names = [one.get("dataset") if isinstance(one, dict) else one for one in datasets]
    return [known.get(str(name), "") for name in names]


def _refuse_missing(view: View, places: Sequence[tuple[int, str]]) -> None:
    """Raise UserError where one of these shards (number of the dataset, name of the tar) is not there."""
    there = [frozenset(storage.names(".tar")) for storage in view.datasets]
    for dataset, shard in places:
        if shard not in there[dataset]:
            raise _missing(view, dataset, shard)


def _missing(view: View, dataset: int, shard: str) -> UserError:
    url = f"{view.datasets[dataset].url}/{shard}"
    return UserError(
        f"{url}: this shard of the view is not there: posts were scrubbed from it, or it is lost",
        "run `xmodal curate` again",
    )


def _forgotten_keys(view: View, dataset: int, shard: str, tombstones: Tombstones) -> set[str]:
    try:
        index = read_index(view.datasets[dataset], shard, keep=False, columns=["key", *ID_FIELDS])
    except FileNotFoundError:  # it was scrubbed since it was looked for
        raise _missing(view, dataset, shard) from None
    return set(index["key"].filter(pa.array(forgotten_rows(index, tombstones))).to_pylist())
