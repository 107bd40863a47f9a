"""The config of a label run, and the part of it that decides what the shards hold."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import xmodal
from shards.checks import require_range
from shards.errors import ConfigError, UserError
from shards.json_object import parse_json_object
from shards.storage import Storage
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.pictures import PictureConfig
from xmodal.crawl.politeness import PolitenessConfig
from xmodal.posts.formats import PostsFormat
from xmodal.posts.readers import posts_fingerprint
from xmodal.posts.selection import SelectConfig
from xmodal.teacher.teacher import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """From a file of posts to a dataset of soft-labelled shards."""

    posts: str
    """File of posts (.jsonl, .json or .csv, also followed by .gz or .zst; .parquet), a folder of such, or a pattern
    such as 'posts/*.jsonl.zst'; several are read in the order of their names."""
    dataset: str
    """Folder of the dataset. Inside a Ray job a relative one lies below $XMODAL_ROOT (or ~/xmodal)."""
    format: PostsFormat = "auto"
    """What the posts' records are: xmodal's own, what a service answers (X's API v2, Mastodon, Bluesky), or T4SA's
    files. By default the names of the files and their first records tell."""
    select: SelectConfig = field(default_factory=SelectConfig)
    base_url: str | None = None
    """What relative picture URLs are relative to."""
    media_folder: str | None = None
    """Local folder in which the pictures lie, instead of being fetched: the posts' media are paths below it. All nodes
    of a cluster must see it."""
    posts_per_unit: int = 1000
    """Posts that one task labels and one shard holds the pictures of."""
    keep_text: bool = False
    """Also store each post's text in the shard. It is personal data: leave it off where you can."""
    commit_outages: bool = False
    """Commit also the units of which no picture could be had, as failures. By default they wait for another run, since
    their host may only be down: set it for hosts that are gone for good."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    politeness: PolitenessConfig = field(default_factory=PolitenessConfig)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    ray_address: str | None = None
    """Ray cluster to run on; by default that of $RAY_ADDRESS, else a new one on this machine."""
    cpus_per_unit: float = 1.0
    """Processors that Ray keeps for a unit. Below 1, units share one: while some wait for hosts that do not answer,
    others go on. Each takes some 250 MiB."""
    max_units_in_flight: int = 0
    """Units handed to Ray at a time; 0 for twice as many as the cluster has processors for."""

    def __post_init__(self) -> None:
        require_range(self, "posts_per_unit", least=1)
        require_range(self, "max_units_in_flight", least=0)
        require_range(self, "cpus_per_unit", above=0)
        if not self.dataset:
            raise ConfigError("dataset", self.dataset, "must name a folder")
        if self.media_folder is not None and self.base_url is not None:
            raise ConfigError("media_folder", self.media_folder, "has no effect with base_url: give one of them")
        if self.base_url is not None and not _is_web_url(self.base_url):
            raise ConfigError("base_url", self.base_url, "must be http:// or https:// and a host")


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def recipe_of(config: LabelConfig, posts: Sequence[str]) -> dict[str, Any]:
    """All that decides what the shards hold, as plain values. `posts` are the files."""
    return {
        "posts_sha256": posts_fingerprint(posts, config.format),
        "format": config.format,
        "select": asdict(config.select),
        "base_url": config.base_url,
        "media_folder": config.media_folder,
        "posts_per_unit": config.posts_per_unit,
        "keep_text": config.keep_text,
        "teacher": config.teacher.recipe(),
        "pictures": asdict(config.pictures),
        "max_bytes": config.fetch.max_bytes,
        "obey_opt_out": config.fetch.obey_opt_out,
        "xmodal": xmodal.__version__,
    }


def pin_recipe(storage: Storage, recipe: dict[str, Any]) -> None:
    """Keep the recipe with the first run; refuse another one, whose shards would not go with those there."""
    if storage.names(".tar"):
        if not storage.exists("recipe.json"):
            raise UserError(f"{storage.url}: holds tars that xmodal did not make", "give an empty folder for `dataset`")
        check_recipe(storage, recipe)
    else:
        # As long as nothing is committed, a run that failed binds the next one to nothing.
        storage.replace("recipe.json", json.dumps(recipe, indent=2).encode() + b"\n")


def check_recipe(storage: Storage, recipe: dict[str, Any]) -> None:
    """Raise UserError where the dataset was begun with another recipe."""
    pinned = parse_json_object(
        storage.read("recipe.json"), f"{storage.url}/recipe.json", "give another folder for `dataset`"
    )
    for name in recipe:
        if pinned.get(name) != recipe[name]:
            raise UserError(
                f"{storage.url}/recipe.json: {name}: begun with {pinned.get(name)!r}, not {recipe[name]!r}",
                "go on with the settings it was begun with, or give another folder for `dataset`",
            )
