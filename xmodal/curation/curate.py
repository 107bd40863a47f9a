"""Datasets → view: reads the indexes, applies the steps in their fixed order, counts each, writes the view."""

import importlib.metadata
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import xmodal
from shards.errors import UserError
from shards.storage import check_can_be_made
from shards.tombstones import Tombstones
from shards.view import SHARD_SCHEMA, SPLITS, VIEW_SCHEMA, ViewWriter
from xmodal.curation import steps
from xmodal.curation.config import CurateConfig
from xmodal.curation.conflicts import Conflicts, conflict_figure, conflict_list, find_conflicts
from xmodal.curation.contamination import BenchmarkPictures, is_in_benchmarks, read_benchmark
from xmodal.curation.datasets import Dataset, Samples, Shard, fingerprint, open_dataset, read_rows, read_samples
from xmodal.curation.dropped import DroppedSamples, sample_names
from xmodal.curation.funnel import Funnel, FunnelStep, class_counts
from xmodal.curation.name_hashes import lots
from xmodal.curation.near_duplicates import near_groups
from xmodal.curation.near_duplicates_on_ray import near_groups_on_ray
from xmodal.curation.order import ranks
from xmodal.labels import CLASSES
from xmodal.ray_session import ray_session

log = logging.getLogger(__name__)

_ROW_COLUMNS = ("key", "image_ext", "image_offset", "image_length", "image_crc32", "soft_label")
_LIBRARIES = ("numba", "numpy", "pyarrow")
"""Whose versions are kept with a view, as what made it."""
_TEXTS_AT_A_TIME = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CurateSummary:
    """A view that was written, or would be."""

    view: str
    fingerprint: str
    """Empty after a dry run."""
    funnel: list[FunnelStep]
    splits: dict[str, int]
    splits_by_class: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """Which samples of which shards are in the view; arrays have an entry for every sample of the datasets."""

    shards: list[Shard]
    funnel: Funnel
    classes: np.ndarray
    splits: np.ndarray
    """int8, place in SPLITS; -1 for those that are in none."""
    conflicts: Conflicts | None
    benchmarks: dict[str, BenchmarkPictures]
    """By their files."""


def curate(config: CurateConfig, *, dry_run: bool = False) -> CurateSummary:
    """Make the view of a recipe. The same datasets and recipe give the same view, bit for bit.

    A dry run counts what each step leaves, and writes nothing. Raises UserError for a dataset that is missing or
    unfinished, a benchmark that cannot be read, samples that lack what a step needs, or a Ray cluster that fails.
    """
    if not dry_run:
        check_can_be_made(config.view)
    datasets = [open_dataset(url) for url in config.dataset_urls]
    # From the start: a cluster that does not answer is told before all is read.
    with ray_session(config.ray_address) if config.ray_address and _needs_groups(config) else nullcontext():
        selection = _select(config, datasets, keep_indexes=not dry_run)
    funnel = selection.funnel.steps
    by_class = {name: class_counts(selection.classes[selection.splits == number]) for number, name in enumerate(SPLITS)}
    splits = {name: sum(counts.values()) for name, counts in by_class.items()}
    mark = ""
    if not dry_run:
        if not funnel[-1].samples:
            raise UserError(
                f"{config.view}: no sample is left after {funnel[-1].step}", "lower the thresholds, or label more posts"
            )
        counts = {"funnel": [asdict(step) for step in funnel], "splits": splits, "splits_by_class": by_class}
        mark = _write(config, datasets, selection, counts)
    return CurateSummary(view=config.view, fingerprint=mark, funnel=funnel, splits=splits, splits_by_class=by_class)


def _select(config: CurateConfig, datasets: Sequence[Dataset], *, keep_indexes: bool) -> _Selection:
    forgotten = Tombstones(
        frozenset().union(*(dataset.tombstones.post_ids for dataset in datasets)),
        frozenset().union(*(dataset.tombstones.authors for dataset in datasets)),
    )
    benchmarks = {file: read_benchmark(file) for file in config.benchmarks}
    samples = read_samples(
        datasets,
        [_needs(config, dataset) for dataset in datasets],
        # Datasets that were told to forget nobody need not know whose their samples are.
        where_known=[name for name, names in (("post_id", forgotten.post_ids), ("author", forgotten.authors)) if names],
        num_workers=config.num_workers,
        keep_indexes=keep_indexes,
    )
    thresholds = np.array(config.thresholds)
    ranking = ranks(samples.keys, samples.soft_labels, _contents(samples, thresholds))
    balance_lots = lots(config.seed, "balance", _texts(samples.keys)) if config.balance != "none" else None
    masks = _masks(samples, list(benchmarks.values()), forgotten, thresholds)
    splits = _splits(config, samples)
    shards, classes, soft_labels, of_datasets = samples.shards, samples.classes, samples.soft_labels, samples.datasets
    sha256, pdq, num_pixels = samples.sha256, samples.pdq, samples.num_pixels
    del samples  # All else is let go of before the step that takes the most memory.

    funnel = Funnel(classes)
    if config.exact_duplicates:
        assert sha256 is not None
        numbers = steps.equal_rows(sha256)
        funnel.apply("exact duplicates", lambda left: steps.first_of_each(numbers[left], ranking[left]))
        del numbers
    del sha256
    if _needs_groups(config):
        assert pdq is not None
        # Of all samples, whichever are left when the groups are asked for: what was dropped links pictures, too.
        groups = near_groups_on_ray(pdq) if config.ray_address else near_groups(pdq)
    del pdq
    if config.near_duplicates:
        assert num_pixels is not None
        funnel.apply(
            "near duplicates", lambda left: steps.first_of_each(groups[left], -num_pixels[left], ranking[left])
        )
    for name, stays in masks.items():
        funnel.apply(name, stays.__getitem__)
    if _has_leaks(config):
        funnel.apply("split leaks", lambda left: steps.without_leaks(splits[left], groups[left]))
    if balance_lots is not None:
        funnel.apply("balance", lambda left: _balanced(config, classes[left], balance_lots[left], ranking[left]))
    splits[funnel.dropped_by > 0] = -1
    conflicts = None
    if config.conflicts:
        asked = masks.get("forgotten", np.ones(len(classes), dtype=bool))
        conflicts = find_conflicts(groups, soft_labels, of_datasets, asked)
    return _Selection(
        shards=shards, funnel=funnel, classes=classes, splits=splits, conflicts=conflicts, benchmarks=benchmarks
    )


def _contents(samples: Samples, thresholds: np.ndarray) -> list[np.ndarray]:
    """What may differ between samples of one key and one label: the pictures, and their datasets' thresholds."""
    words = [] if samples.sha256 is None else list(samples.sha256.view(np.uint64).T)
    # Of copies in two datasets, that which its own dataset's threshold lets pass more easily comes first.
    return [samples.crc32, *words, thresholds[samples.datasets, samples.classes]]


def _masks(
    samples: Samples, benchmarks: Sequence[BenchmarkPictures], forgotten: Tombstones, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """The steps that look at each post by itself, in their order, and for each of all samples whether it stays."""
    masks: dict[str, np.ndarray] = {}
    if benchmarks:
        assert samples.sha256 is not None
        assert samples.pdq is not None
        # Asked of duplicates too: a post stays known by a picture that is not kept.
        masks["benchmark pictures"] = ~_of_posts_with(
            samples, is_in_benchmarks(samples.sha256, samples.pdq, benchmarks)
        )
    if forgotten:
        masks["forgotten"] = ~_is_forgotten(samples, forgotten)
    if thresholds.any():
        masks["confidence"] = steps.confident(samples.confidence, samples.classes, samples.datasets, thresholds)
    return masks


def _needs(config: CurateConfig, dataset: Dataset) -> dict[str, list[str]]:
    """The fields of a dataset's samples that the recipe needs, and for each of them the steps that need it."""
    needs: dict[str, list[str]] = {}
    for is_asked, step, names in (
        (config.exact_duplicates, "exact_duplicates", ["sha256"]),
        (config.near_duplicates, "near_duplicates", ["pdq", "width", "height"]),
        (config.benchmarks, "benchmarks", ["sha256", "pdq", "post_id"]),
        (dataset.tombstones.post_ids, "forgotten posts", ["post_id"]),
        (config.split.val or config.split.test, "split", ["post_id"]),
        (_has_leaks(config), "split.drop_leaks", ["pdq"]),
        (config.conflicts, "conflicts", ["pdq"]),
    ):
        for name in names if is_asked else []:
            needs.setdefault(name, []).append(step)
    return needs


def _needs_groups(config: CurateConfig) -> bool:
    """Whether a step asks which samples are near duplicates."""
    return config.near_duplicates or config.conflicts or _has_leaks(config)


def _has_leaks(config: CurateConfig) -> bool:
    """Whether near duplicates may lie in several splits, and are to be dropped there."""
    return config.split.drop_leaks and not config.near_duplicates and bool(config.split.val or config.split.test)


def _of_posts_with(samples: Samples, touched: np.ndarray) -> np.ndarray:
    """Which samples are of a post that has a touched one: all pictures of a post show one thing and share its text."""
    assert samples.posts is not None
    assert samples.post_ids is not None
    is_post_touched = np.zeros(len(samples.post_ids), dtype=bool)
    is_post_touched[samples.posts[touched]] = True
    return is_post_touched[samples.posts]


def _is_forgotten(samples: Samples, forgotten: Tombstones) -> np.ndarray:
    rows = np.zeros(len(samples.classes), dtype=bool)
    if forgotten.post_ids:
        rows |= _is_in(samples.post_ids, forgotten.post_ids)[samples.posts]
    if forgotten.authors:
        rows |= _is_in(samples.authors, forgotten.authors)
    return rows


def _is_in(values: pa.LargeStringArray | None, names: frozenset[str]) -> np.ndarray:
    return pc.is_in(values, pa.array(sorted(names), pa.large_string())).to_numpy(zero_copy_only=False)


def _balanced(config: CurateConfig, classes: np.ndarray, drawn: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    size = config.cap if config.balance == "cap" else steps.smallest_class(classes)
    missing = [name for name, count in class_counts(classes).items() if not count]
    if missing and config.balance == "undersample":
        log.warning("balance: no sample left that is %s; the other classes are cut down without", " or ".join(missing))
    return steps.capped(classes, drawn, ranking, size)


def _splits(config: CurateConfig, samples: Samples) -> np.ndarray:
    """int8 `(n,)`; where one split is to have all, no post needs to be known."""
    if samples.posts is None:
        return np.zeros(len(samples.classes), dtype=np.int8)
    assert samples.post_ids is not None
    drawn = lots(config.seed, "split", _texts(samples.post_ids))
    return steps.split_of(drawn, config.split.shares).astype(np.int8)[samples.posts]


def _texts(names: pa.LargeStringArray) -> Iterator[str]:
    """Python texts, a few at a time."""
    for start in range(0, len(names), _TEXTS_AT_A_TIME):
        yield from names.slice(start, _TEXTS_AT_A_TIME).to_pylist()


def _write(config: CurateConfig, datasets: Sequence[Dataset], selection: _Selection, counts: Mapping[str, Any]) -> str:
    """Write the view. Returns its fingerprint."""
    writer = ViewWriter()
    dropped = DroppedSamples()
    conflict_keys: list[pa.Array] = []
    shards, start = [], 0
    rows_of_shards = read_rows(datasets, selection.shards, _ROW_COLUMNS, num_workers=config.num_workers)
    for shard, table in zip(selection.shards, rows_of_shards, strict=True):
        part = slice(start, start + shard.num_samples)
        start = part.stop
        dropped.add(sample_names(table["key"], table["image_crc32"]), selection.funnel.dropped_by[part])
        if selection.conflicts is not None:
            conflict_keys.append(table["key"].filter(selection.conflicts.is_listed[part]))
        splits = selection.splits[part]
        if (splits >= 0).any():
            shards.append(shard)
            writer.add(_rows(table.filter(splits >= 0), shard, splits[splits >= 0]))
    beside = {"dropped": ("dropped.parquet", dropped.parquet())}
    if selection.conflicts is not None:
        keys = pa.chunked_array(conflict_keys, pa.string())
        beside["conflicts"] = ("conflicts.parquet", conflict_list(selection.conflicts, keys))
        beside["conflict_figure"] = ("conflicts.svg", conflict_figure(selection.conflicts))
    recipe = asdict(config)
    del recipe["num_workers"], recipe["ray_address"]  # Whatever they are, the view is the same.
    return writer.finish(
        config.view,
        _shard_table(shards),
        datasets=[dataset.storage.url for dataset in datasets],
        description={
            "classes": list(CLASSES),
            "recipe": recipe,
            "counts": counts,
            "inputs": {
                dataset.url: fingerprint(shard for shard in selection.shards if shard.dataset == number)
                for number, dataset in enumerate(datasets)
            },
            "benchmarks": {file: benchmark.description() for file, benchmark in selection.benchmarks.items()},
            "tombstones": {dataset.url: dataset.tombstones.fingerprint for dataset in datasets},
            "versions": _versions(),
        },
        beside=beside,
    )


def _rows(kept: pa.Table, shard: Shard, splits: np.ndarray) -> pa.Table:
    """The view's rows of the samples that are kept of a shard."""
    columns = {
        "dataset": pa.array(np.full(len(splits), shard.dataset, dtype=np.int32)),
        "shard": pa.repeat(shard.name, len(splits)),
        "split": pa.array(SPLITS).take(pa.array(splits)),
        "target": kept["soft_label"],
    }
    return pa.table({name: columns[name] if name in columns else kept[name] for name in VIEW_SCHEMA.names})


def _shard_table(shards: Sequence[Shard]) -> pa.Table:
    return pa.table(
        {
            "dataset": [shard.dataset for shard in shards],
            "shard": [shard.name for shard in shards],
            "bytes": [shard.bytes for shard in shards],
            "sha256": [shard.sha256 for shard in shards],
        },
        schema=SHARD_SCHEMA,
    )


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"xmodal": xmodal.__version__, "python": platform.python_version(), **libraries}
