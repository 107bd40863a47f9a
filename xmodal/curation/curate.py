"""Datasets → view: reads the indexes, applies the steps in their fixed order, counts each, writes the view."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

import xmodal
from shards.checks import require_range
from shards.dataset import read_dataset
from shards.errors import ConfigError, UserError
from shards.index import index_metadata, index_name, read_index
from shards.storage import Storage, open_storage
from shards.view import SHARD_SCHEMA, SPLITS, shard_entry, write_view
from xmodal.benchmarks import load_benchmark
from xmodal.crawl.pictures import PILLOW_MAX_PIXELS, PictureConfig, RefusedPictureError, check_picture
from xmodal.curation import steps
from xmodal.curation.near_duplicates import hash_bits
from xmodal.curation.steps import Samples
from xmodal.labels import CLASSES, histogram

log = logging.getLogger(__name__)

_PLACE = ("key", "image_ext", "image_offset", "image_length", "image_crc32")
_FIELDS = ("soft_label", "sha256", "pdq", "post_id", "width", "height")


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    """A sample is kept if the probability of its class is strictly greater than that class's threshold."""

    negative: float = 0.0
    neutral: float = 0.0
    positive: float = 0.0

    def __post_init__(self) -> None:
        require_range(self, *CLASSES, least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OwnConfidenceConfig:
    """Thresholds of one dataset; those that are not given are the recipe's."""

    negative: float | None = None
    neutral: float | None = None
    positive: float | None = None

    def __post_init__(self) -> None:
        require_range(self, *(name for name in CLASSES if getattr(self, name) is not None), least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A dataset with thresholds of its own."""

    dataset: str
    """Folder of a finished dataset."""
    confidence: OwnConfidenceConfig = field(default_factory=OwnConfidenceConfig)
    """For the samples of this dataset, instead of the recipe's."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the posts; they need not add up to 1."""

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        require_range(self, "train", above=0)
        require_range(self, "val", "test", least=0)


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """From finished datasets to a view. The steps are applied in the order in which they stand here."""

    datasets: list[str | DatasetConfig]
    """Folders of finished datasets. One with thresholds of its own is a section, with `dataset`, its folder, and
    `confidence`, whose classes replace the recipe's."""
    view: str
    """Folder of the view."""
    near_duplicates: bool = True
    """Keep one of each group of near duplicates (PDQ distance 31 or less)."""
    benchmarks: list[str] = field(default_factory=list)
    """Benchmark files; posts with a picture equal or nearly equal to one of theirs are left out."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    balance: Literal["none", "undersample"] = "none"
    """`undersample` cuts every class down to the smallest."""
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0
    """Decides who is left out by balancing, and the splits."""

    def __post_init__(self) -> None:
        if not all(self.dataset_urls) or not self.datasets:
            raise ConfigError("datasets", self.dataset_urls, "must name at least one dataset")
        if not self.view:
            raise ConfigError("view", self.view, "must name a folder")
        if len(set(zip(self.dataset_urls, self.thresholds, strict=True))) > len(set(self.dataset_urls)):
            raise ConfigError("datasets", self.dataset_urls, "must not name one twice with different thresholds")

    @property
    def dataset_urls(self) -> list[str]:
        """The folder of each dataset."""
        return [one if isinstance(one, str) else one.dataset for one in self.datasets]

    @property
    def thresholds(self) -> list[tuple[float, ...]]:
        """For each dataset, the threshold of each class."""
        return [_thresholds(self.confidence, None if isinstance(one, str) else one.confidence) for one in self.datasets]


def _thresholds(common: ConfidenceConfig, own: OwnConfidenceConfig | None) -> tuple[float, ...]:
    pairs = ((getattr(common, name), getattr(own, name, None)) for name in CLASSES)
    return tuple(of_all if of_one is None else of_one for of_all, of_one in pairs)


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """What was left after a step."""

    step: str
    samples: int
    by_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class CurateSummary:
    """A written view."""

    view: str
    fingerprint: str
    funnel: list[FunnelStep]
    splits: dict[str, int]


def curate(config: CurateConfig) -> CurateSummary:
    """Make the view of a recipe. The same datasets and recipe give the same view, bit for bit.

    Raises UserError for a dataset that is missing or unfinished, or a benchmark that cannot be read.
    """
    storages = [open_storage(dataset) for dataset in config.dataset_urls]
    documents = [read_dataset(storage) for storage in storages]
    table, shards = _read_samples(storages, documents)
    if not table.num_rows:
        raise UserError(f"{', '.join(config.dataset_urls)}: no samples", "label some posts first")
    samples = _samples(table)
    stays, funnel = _apply(samples, _steps(config, samples))
    table = table.filter(pa.array(stays))
    if not table.num_rows:
        raise UserError(
            f"{config.view}: no sample is left after {funnel[-1].step}", "lower the thresholds, or label more posts"
        )
    numbers = steps.split_by_post(
        _samples(table), [config.split.train, config.split.val, config.split.test], config.seed
    )
    table = table.append_column("split", pa.array(np.array(SPLITS)[numbers]))
    splits = {name: int((numbers == number).sum()) for number, name in enumerate(SPLITS)}
    rows = table.select(["dataset", "shard", *_PLACE, "split"])
    mark, _ = write_view(
        config.view,
        rows.append_column("target", table["soft_label"]),
        shards,
        datasets=config.dataset_urls,
        description={
            "classes": list(CLASSES),
            "recipe": asdict(config),
            "counts": {"funnel": [asdict(step) for step in funnel], "splits": splits},
            "inputs": {
                dataset: _fingerprint(document)
                for dataset, document in zip(config.dataset_urls, documents, strict=True)
            },
            "xmodal": xmodal.__version__,
        },
    )
    return CurateSummary(view=config.view, fingerprint=mark, funnel=funnel, splits=splits)


def _steps(config: CurateConfig, labelled: Samples) -> list[tuple[str, Callable[[Samples], np.ndarray]]]:
    """Names and functions of the steps that the recipe asks for, in the order of the design."""
    chosen: list[tuple[str, Callable[[Samples], np.ndarray]]] = [("exact duplicates", steps.first_of_duplicates)]
    if config.near_duplicates:
        chosen.append(("near duplicates", steps.best_of_near_duplicates))
    if config.benchmarks:
        contaminated = steps.posts_in_benchmarks(labelled, *_benchmark_hashes(config.benchmarks))
        chosen.append(("benchmark pictures", lambda samples: steps.outside_posts(samples, contaminated)))
    if np.any(config.thresholds):
        chosen.append(("confidence", lambda samples: steps.confident(samples, config.thresholds)))
    if config.balance == "undersample":
        chosen.append(("balance", lambda samples: steps.undersampled(samples, config.seed)))
    return chosen


def _apply(
    samples: Samples, chosen: Sequence[tuple[str, Callable[[Samples], np.ndarray]]]
) -> tuple[np.ndarray, list[FunnelStep]]:
    stays = np.ones(len(samples), dtype=bool)
    funnel = [FunnelStep(step="labelled", samples=len(samples), by_class=histogram(samples.soft_labels))]
    for name, step in chosen:
        left = samples.take(stays)
        if len(left):
            stays[np.flatnonzero(stays)] = step(left)
        left = samples.take(stays)
        funnel.append(FunnelStep(step=name, samples=len(left), by_class=histogram(left.soft_labels)))
    return stays, funnel


def _read_samples(storages: Sequence[Storage], documents: Sequence[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """All samples of the datasets, in the order of (dataset, shard, place in the shard), and the shards they are in."""
    tables, shards = [], []
    for number, (storage, document) in enumerate(zip(storages, documents, strict=True)):
        for shard in document["shards"]:
            if not shard["samples"]:
                continue
            try:
                index = read_index(storage, shard["name"])
            except FileNotFoundError:
                raise UserError(
                    f"{storage.url}/{shard['name']}: this shard of the dataset is not there",
                    "restore it, or run `xmodal label` again",
                ) from None
            if index_metadata(index)["tar_sha256"] != shard["sha256"]:
                raise UserError(
                    f"{storage.url}/{shard['name']}: not the shard that dataset.json was written for",
                    f"remove {index_name(shard['name'])}, which may be another tar's, and run `xmodal label` again",
                )
            missing = {name for name in _FIELDS if name not in index.column_names or index[name].null_count}
            if missing:
                raise UserError(
                    f"{storage.url}/{shard['name']}: samples without {', '.join(sorted(missing))}",
                    "curate datasets that `xmodal label` made",
                )
            if "" in index["sha256"].to_pylist():
                raise UserError(
                    f"{storage.url}/{shard['name']}: samples without hashes, so their duplicates cannot be found",
                    "label with pictures.hashes: true",
                )
            shards.append(shard_entry(number, shard["name"], index))
            # The other fields' types may differ from dataset to dataset.
            index = index.select([*_PLACE, *_FIELDS])
            index = index.append_column("dataset", pa.array(np.full(index.num_rows, number, dtype=np.int32)))
            index = index.append_column("shard", pa.array([shard["name"]] * index.num_rows))
            tables.append(index)
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    return table, pa.Table.from_pylist(shards, schema=SHARD_SCHEMA)


def _samples(table: pa.Table) -> Samples:
    def column(name: str) -> np.ndarray:
        return np.array(table[name].to_pylist())

    return Samples(
        datasets=column("dataset"),
        keys=column("key"),
        post_ids=column("post_id"),
        sha256=column("sha256"),
        pdq_bits=hash_bits(table["pdq"].to_pylist()),
        num_pixels=column("width") * column("height"),
        soft_labels=np.array(table["soft_label"].to_pylist(), dtype=np.float64),
    )


def _benchmark_hashes(files: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The sha256 and PDQ of every benchmark picture, whatever its size."""
    limits = PictureConfig(min_side=1, max_side=0, max_pixels=PILLOW_MAX_PIXELS)
    sha256, pdq = [], []
    for file in files:
        benchmark = load_benchmark(file)
        for place in range(len(benchmark.paths)):
            path = benchmark.image_path(place)
            try:
                picture = check_picture(path.read_bytes(), limits)
            except RefusedPictureError as error:
                log.warning("%s: %s; it cannot be compared with the posts' pictures", path, error.reason)
                continue
            sha256.append(picture.sha256)
            pdq.append(picture.pdq)
    return sha256, hash_bits(pdq)


def _fingerprint(document: dict[str, Any]) -> str:
    """The sha256 (hex) of a dataset: of its shards' names and sha256."""
    content = json.dumps([[shard["name"], shard["sha256"]] for shard in document["shards"]])
    return hashlib.sha256(content.encode()).hexdigest()
