"""What a recipe of a view says."""

from dataclasses import dataclass, field
from typing import Literal

from shards.checks import require_range
from shards.errors import ConfigError
from xmodal.labels import CLASSES


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
    """Folder of a finished dataset, or a pattern of tars."""
    confidence: OwnConfidenceConfig = field(default_factory=OwnConfidenceConfig)
    """For the samples of this dataset, instead of the recipe's."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the posts; they need not add up to 1. A post's split depends on the seed and its id alone."""

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1
    drop_leaks: bool = True
    """Of near duplicates that fall into several splits, only those in test stay, or else those in val."""

    def __post_init__(self) -> None:
        require_range(self, "train", above=0)
        require_range(self, "val", "test", least=0)

    @property
    def shares(self) -> tuple[float, float, float]:
        """In the order of `shards.view.SPLITS`."""
        return (self.train, self.val, self.test)


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """From datasets to a view. The steps are applied in the order in which they stand here."""

    datasets: list[str | DatasetConfig]
    """Folders of finished datasets, or patterns of indexed tars made elsewhere: `s3://bucket/data/{0000..0099}.tar`.
    One with thresholds of its own is a section, with `dataset`, its folder, and `confidence`, whose classes replace the
    recipe's."""
    view: str
    """Folder of the view."""
    exact_duplicates: bool = True
    """Keep one of pictures with equal bytes (sha256)."""
    near_duplicates: bool = True
    """Keep one of each group of near duplicates (PDQ distance 31 or less): the largest, then that of smallest key."""
    benchmarks: list[str] = field(default_factory=list)
    """Benchmarks, by name or YAML file; posts with a picture equal or nearly equal to one of theirs are left out."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    balance: Literal["none", "undersample", "cap"] = "none"
    """`undersample` cuts every class down to the smallest, `cap` to the number `cap`."""
    cap: int = 0
    """Most samples of a class."""
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0
    """Decides who is left out by balancing, and the splits."""
    conflicts: bool = False
    """Write beside the view which near duplicates have unlike soft labels: a figure, and a list of their keys."""
    num_workers: int = 16
    """Indexes that are read at a time. The view does not depend on it."""
    ray_address: str | None = None
    """Ray cluster whose processors look for near duplicates (`auto` for the one that this machine is part of); by
    default this machine's do. The view does not depend on it."""

    def __post_init__(self) -> None:
        if not all(self.dataset_urls) or not self.datasets:
            raise ConfigError("datasets", self.dataset_urls, "must name at least one dataset")
        if not self.view:
            raise ConfigError("view", self.view, "must name a folder")
        if len({(_url(one), thresholds) for one, thresholds in self._with_thresholds}) > len(self.dataset_urls):
            raise ConfigError(
                "datasets", list(map(_url, self.datasets)), "must not name one twice with different thresholds"
            )
        require_range(self, "num_workers", least=1)
        require_range(self, "cap", least=1 if self.balance == "cap" else 0)
        if self.cap and self.balance != "cap":
            raise ConfigError("cap", self.cap, "needs balance: cap")

    @property
    def dataset_urls(self) -> list[str]:
        """The folder of each dataset. One that is named twice counts once."""
        return list(dict.fromkeys(map(_url, self.datasets)))

    @property
    def thresholds(self) -> list[tuple[float, ...]]:
        """For each of `dataset_urls`, the threshold of each class."""
        return list({_url(one): thresholds for one, thresholds in self._with_thresholds}.values())

    @property
    def _with_thresholds(self) -> list[tuple[str | DatasetConfig, tuple[float, ...]]]:
        own = (None if isinstance(one, str) else one.confidence for one in self.datasets)
        return [(one, _thresholds(self.confidence, mine)) for one, mine in zip(self.datasets, own, strict=True)]


def _url(dataset: str | DatasetConfig) -> str:
    return dataset if isinstance(dataset, str) else dataset.dataset


def _thresholds(common: ConfidenceConfig, own: OwnConfidenceConfig | None) -> tuple[float, ...]:
    pairs = ((getattr(common, name), getattr(own, name, None)) for name in CLASSES)
    return tuple(of_all if of_one is None else of_one for of_all, of_one in pairs)
