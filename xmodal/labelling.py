"""Posts → shards on Ray. The driver cuts the posts into units; one task labels, fetches and commits one unit.

Pictures go from the task straight to its shard, never through Ray's object store. A task may run twice or die at any
point: the commit makes that harmless. The driver too: run again, it skips what is committed and goes on.
"""

import asyncio
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

import xmodal
from shards.checks import require_range
from shards.dataset import ShardSummary, failures, finish
from shards.errors import ConfigError, UserError
from shards.json_object import parse_json_object
from shards.storage import Storage, open_storage
from shards.writer import Sample, recover_failures, write_shard
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.pictures import PictureConfig
from xmodal.labels import SoftLabel, histogram
from xmodal.posts.readers import PostRecord, check_posts_file, posts_fingerprint, read_posts, units
from xmodal.teacher.teacher import Teacher, TeacherConfig, load_teacher
from xmodal.unit import UnitOutageError, unit_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """From a file of posts to a dataset of soft-labelled shards."""

    posts: str
    """File of posts: .jsonl, .jsonl.gz or .jsonl.zst."""
    dataset: str
    """Folder of the dataset. Inside a Ray job a relative one lies below $XMODAL_ROOT (or ~/xmodal)."""
    base_url: str | None = None
    """What relative picture URLs are relative to."""
    posts_per_unit: int = 1000
    """Posts that one task labels and one shard holds the pictures of."""
    keep_text: bool = False
    """Also store each post's text in the shard. It is personal data: leave it off where you can."""
    commit_outages: bool = False
    """Commit also the units of which no picture could be had, as failures. By default they wait for another run, since
    their host may only be down: set it for hosts that are gone for good."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    ray_address: str | None = None
    """Ray cluster to run on; by default that of $RAY_ADDRESS, else a new one on this machine."""
    max_units_in_flight: int = 0
    """Units handed to Ray at a time; 0 for twice the cluster's processors."""

    def __post_init__(self) -> None:
        require_range(self, "posts_per_unit", least=1)
        require_range(self, "max_units_in_flight", least=0)
        if not self.dataset:
            raise ConfigError("dataset", self.dataset, "must name a folder")
        if self.base_url is not None and not _is_web_url(self.base_url):
            raise ConfigError("base_url", self.base_url, "must be http:// or https:// and a host")


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a finished label run has made, this time and before."""

    dataset: str
    posts: int
    media: int
    """Pictures that the posts name."""
    samples: int
    failures: dict[str, int]
    """Reason → how many posts or pictures gave no sample for it."""
    shards: list[ShardSummary]
    units_done_before: int
    """Units that an earlier run had committed."""


@dataclass(frozen=True, kw_only=True)
class _UnitResult:
    number: int
    num_samples: int | None = None
    """None where the unit was committed before."""
    outage: str | None = None
    """Why no picture of the unit could be had; then it is not committed."""


def label(config: LabelConfig) -> LabelSummary:
    """Label all posts and finish the dataset. Run again after a crash, it goes on where it was.

    Raises UserError for posts that cannot be read, a dataset made from other posts or settings, and, once all other
    units are committed, for units of which no picture could be had.
    """
    check_posts_file(config.posts)
    dataset = resolve_dataset(config.dataset, os.environ)
    storage = open_storage(dataset, create=True)
    recipe = recipe_of(config)
    _pin_recipe(storage, recipe)
    done = {name.removesuffix(".tar") for name in storage.names(".tar")}
    counts: Counter[str] = Counter()
    missing = _missing_units(config, done, counts)
    first = next(missing, None)
    if first is not None:
        _run_on_ray(config, dataset, first, missing)
    else:
        log.info("%s: every unit is committed already", dataset)
    _check_recipe(storage, recipe)  # a run with other settings may have begun at the same time
    shards = finish(
        storage,
        describe_shard=_describe_shard,
        describe_dataset=lambda shards: {"teacher": _one_teacher(shards), "recipe": recipe},
    )
    reasons = Counter(failure["reason"] for failure in failures(storage))
    return LabelSummary(
        dataset=dataset,
        posts=counts["posts"],
        media=counts["media"],
        samples=sum(shard.samples for shard in shards),
        failures=dict(sorted(reasons.items())),
        shards=shards,
        units_done_before=len(done),
    )


def resolve_dataset(dataset: str, environment: "os._Environ[str] | dict[str, str]") -> str:
    """Where the dataset lies, for every process of a cluster, whatever its working folder.

    A Ray job runs in a temporary copy of the working folder, which goes away with it.
    """
    if "://" in dataset:
        return dataset
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment:
        dataset = os.path.join(environment.get("XMODAL_ROOT") or os.path.expanduser("~/xmodal"), dataset)
    return os.path.abspath(dataset)


def unit_name(number: int) -> str:
    """`123` → `000123`, the name of the unit's shard."""
    return f"{number:06d}"


def recipe_of(config: LabelConfig) -> dict[str, Any]:
    """All that decides what the shards hold, as plain values."""
    return {
        "posts_sha256": posts_fingerprint(config.posts),
        "base_url": config.base_url,
        "posts_per_unit": config.posts_per_unit,
        "keep_text": config.keep_text,
        "teacher": {"kind": config.teacher.kind}
        | (
            {"model": config.teacher.model, "revision": config.teacher.revision}
            if config.teacher.kind != "lexicon"
            else {}
        ),
        "pictures": asdict(config.pictures),
        "max_bytes": config.fetch.max_bytes,
        "obey_opt_out": config.fetch.obey_opt_out,
        "xmodal": xmodal.__version__,
    }


def _pin_recipe(storage: Storage, recipe: dict[str, Any]) -> None:
    """Keep the recipe with the first run; refuse another one, whose shards would not go with those there."""
    if storage.names(".tar"):
        if not storage.exists("recipe.json"):
            raise UserError(f"{storage.url}: holds tars that xmodal did not make", "give an empty folder for `dataset`")
        _check_recipe(storage, recipe)
    else:
        # As long as nothing is committed, a run that failed binds the next one to nothing.
        storage.replace("recipe.json", json.dumps(recipe, indent=2).encode() + b"\n")


def _check_recipe(storage: Storage, recipe: dict[str, Any]) -> None:
    pinned = parse_json_object(
        storage.read("recipe.json"), f"{storage.url}/recipe.json", "give another folder for `dataset`"
    )
    for name in recipe:
        if pinned.get(name) != recipe[name]:
            raise UserError(
                f"{storage.url}/recipe.json: {name}: begun with {pinned.get(name)!r}, not {recipe[name]!r}",
                "go on with the settings it was begun with, or give another folder for `dataset`",
            )


def _missing_units(
    config: LabelConfig, done: set[str], counts: "Counter[str]"
) -> Iterator[tuple[int, list[PostRecord]]]:
    for number, records in units(read_posts(config.posts), config.posts_per_unit):
        counts["posts"] += len(records)
        counts["media"] += sum(len(record.post.media) for record in records if record.post)
        if unit_name(number) not in done:
            yield number, records


def _describe_shard(index: pa.Table) -> dict[str, Any]:
    if not index.num_rows:
        return {"label_histogram": histogram([]), "teacher": None}
    return {"label_histogram": histogram(index["soft_label"].to_pylist()), "teacher": index["teacher"][0].as_py()}


def _one_teacher(shards: Sequence[ShardSummary]) -> dict[str, str] | None:
    """The teacher of all shards; an upgrade of it between two runs is worth a warning, the labels may differ."""
    teachers = [shard.description["teacher"] for shard in shards if shard.description["teacher"]]
    if any(teacher != teachers[0] for teacher in teachers):
        log.warning("the shards were labelled by more than one revision of the teacher; dataset.json says which")
    return teachers[0] if teachers else None


# --- the part that runs on the cluster -------------------------------------------------------------------------------


class _TeacherActor:
    """Holds a loaded teacher; texts of a whole unit come in one call."""

    def __init__(self, config: TeacherConfig) -> None:
        self._teacher: Teacher | None = None
        try:
            self._teacher = load_teacher(config)
        except UserError as error:
            # Raised in here, it would reach the driver as a page of text; raised by `identity`, as what it is.
            self._problem = error

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        if self._teacher is None:
            raise self._problem
        return self._teacher.label(texts)

    def identity(self) -> dict[str, str]:
        if self._teacher is None:
            raise self._problem
        return {"name": self._teacher.name, "revision": self._teacher.revision}


def _run_on_ray(
    config: LabelConfig, dataset: str, first: tuple[int, list[PostRecord]], rest: Iterable[tuple[int, list[PostRecord]]]
) -> None:
    # Ray takes seconds to import, and `xmodal --help` or a finished dataset need none of it.
    import ray

    _start_ray(config.ray_address)
    try:
        num_gpus = gpus_per_teacher(config.teacher, int(ray.cluster_resources().get("GPU", 0)))
        # Without a GPU the teacher reserves no processor: it would wait for ever on a machine that has one.
        actor_class = ray.remote(num_cpus=0, num_gpus=num_gpus, max_restarts=-1, max_task_retries=3)(_TeacherActor)
        teachers = [actor_class.remote(config.teacher) for _ in range(config.teacher.num_actors)]
        identity = _common_identity(ray.get([teacher.identity.remote() for teacher in teachers]))
        task = ray.remote(num_cpus=1, max_retries=3)(_label_unit)
        limit = config.max_units_in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

        def submit(unit: tuple[int, list[PostRecord]]) -> Any:
            number, records = unit
            texts = [record.post.text for record in records if record.post]
            labels = teachers[number % len(teachers)].label.remote(texts)
            return task.remote(config, dataset, number, records, [labels], identity)

        outages: list[str] = []
        in_flight = [submit(first)]
        for unit in rest:
            while len(in_flight) >= limit:
                in_flight = _collect_finished(ray, in_flight, outages)
            in_flight.append(submit(unit))
        while in_flight:
            in_flight = _collect_finished(ray, in_flight, outages)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.ActorDiedError as error:
        raise UserError(
            f"teacher.kind: {config.teacher.kind}: the teacher could not start: {_last_line(error)}",
            "check the teacher section of the config; `xmodal doctor` says what this machine has",
        ) from error
    finally:
        ray.shutdown()
    if outages:
        raise UserError(
            f"{dataset}: units that wait for their pictures: {len(outages)}; the first is {outages[0]}",
            "check that the hosts answer, base_url and fetch.allow_networks; the same command goes on with these "
            "units. If the pictures are gone for good, give --commit_outages true",
        )


def _common_identity(identities: Sequence[dict[str, str]]) -> dict[str, str]:
    """Name and revision of the teacher that all actors hold. Raises UserError where they hold different ones."""
    for identity in identities:
        if identity != identities[0]:
            raise UserError(
                f"teacher.model: one node has {identities[0]}, another {identity}",
                "pin teacher.revision, or give all nodes the same folder",
            )
    return identities[0]


def gpus_per_teacher(config: TeacherConfig, num_gpus: int) -> int:
    """How many of the cluster's `num_gpus` each teacher takes. Raises UserError where they are too few for all."""
    if config.kind == "lexicon" or not num_gpus:
        return 0
    if config.num_actors > num_gpus:
        # Ray would let them, and every unit that is theirs, wait for ever.
        raise UserError(
            f"teacher.num_actors: {config.num_actors} teachers take a GPU each, and the cluster has {num_gpus}",
            f"give at most {num_gpus}, or add nodes with GPUs",
        )
    return 1


def _start_ray(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _check_listener(address)
            ray.init(address=address, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"ray_address: {address}: no Ray cluster answers", "start one by `ray start --head`"
            ) from error
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            object_store_memory=200_000_000,  # texts of the units in flight; pictures never pass through it
        )


def _check_listener(address: str) -> None:
    """Raise ConnectionError if nothing listens at `host:port`: Ray itself would go on asking for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(address) from error


def _collect_finished(ray: Any, in_flight: list[Any], outages: list[str]) -> list[Any]:
    """Wait for a unit, log it, and add it to `outages` if it was none; returns what is still in flight."""
    finished, waiting = ray.wait(in_flight, num_returns=1)
    for result in ray.get(finished):
        name = unit_name(result.number)
        if result.outage:
            log.warning("unit %s: %s; it waits for another run", name, result.outage)
            outages.append(f"{name}: {result.outage}")
        elif result.num_samples is None:
            log.info("unit %s: was committed meanwhile", name)
        else:
            log.info("unit %s: %d samples", name, result.num_samples)
    return waiting


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _label_unit(
    config: LabelConfig,
    dataset: str,
    number: int,
    records: list[PostRecord],
    label_references: list[Any],
    teacher: dict[str, str],
) -> _UnitResult:
    """Fetch a unit's pictures while the teacher reads its texts, and commit its shard.

    The labels come as a reference in a list, which Ray does not wait for before it starts the task.
    """
    import ray

    name = unit_name(number)
    storage = open_storage(dataset, create=True)
    if storage.exists(f"{name}.tar"):
        recover_failures(storage, name)
        return _UnitResult(number=number)
    shard_failures: list[dict[str, Any]] = []

    def labels() -> list[SoftLabel]:
        return ray.get(label_references[0])

    samples = unit_samples(
        records,
        labels=labels,
        teacher=teacher,
        base_url=config.base_url,
        fetch=config.fetch,
        pictures=config.pictures,
        keep_text=config.keep_text,
        commit_outages=config.commit_outages,
        shard_failures=shard_failures,
    )
    try:
        shard = write_shard(storage, name, _drain(samples), shard_failures)
    except UnitOutageError as outage:
        return _UnitResult(
            number=number, outage=f"none of its {outage.num_media} pictures could be had ({outage.reasons})"
        )
    return _UnitResult(number=number, num_samples=shard.num_samples if shard.won else None)


def _drain(source: AsyncIterator[Sample]) -> Iterator[Sample]:
    """An async iterator's items, its event loop run for as long as each one takes."""

    async def following() -> Sample | None:
        return await anext(source, None)

    with asyncio.Runner() as runner:
        # Not `runner.run`, which sets a signal handler each time, and prints the last sample into a message for that.
        loop = runner.get_loop()
        while (sample := loop.run_until_complete(following())) is not None:
            yield sample
