"""Posts → shards: the driver. It cuts the posts into units, skips what is committed, and finishes the dataset.

It may die at any point: run again, it goes on.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from shards.dataset import ShardSummary, finish
from shards.errors import UserError
from shards.storage import LEFTOVER_AGE_SECONDS, Storage, open_storage
from xmodal.labelling.cluster import run_on_ray
from xmodal.labelling.config import LabelConfig, check_recipe, pin_recipe, recipe_of
from xmodal.labelling.failures import OpenFailures
from xmodal.labelling.progress import STATUS_NAME, InputCounts, Progress, read_status, status_text
from xmodal.labelling.task import UnitJob
from xmodal.labelling.units import unit_name
from xmodal.labels import histogram
from xmodal.posts.readers import PostRecord, check_posts_file, labelled, read_posts, units
from xmodal.posts.selection import selected

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a finished label run has made, this time and before."""

    dataset: str
    posts: int
    """Records of the input, but for those that `rejected` counts."""
    media: int
    """Pictures that the posts name."""
    rejected: dict[str, int]
    """Rule of `select` → how many posts it left out."""
    samples: int
    failures: dict[str, int]
    """Reason → how many posts or pictures have no sample for it."""
    retryable: int
    """Of the failures, those that `--retry-failures` would try again."""
    shards: list[ShardSummary]
    shards_there_before: int
    """Shards that an earlier run had committed."""


def label(config: LabelConfig) -> LabelSummary:
    """Label all posts and finish the dataset. Run again after a crash, it goes on where it was.

    Raises UserError for posts that cannot be read, a dataset made from other posts or settings, and, once all other
    units are committed, for units of which no picture could be had.
    """
    storage, dataset, recipe = _open(config)
    pin_recipe(storage, recipe)
    done = {name.removesuffix(".tar") for name in storage.names(".tar")}
    counts = InputCounts()
    jobs = (
        UnitJob(number=number, records=records)
        for number, records in _read_units(config, counts)
        if unit_name(number) not in done
    )
    outages = _run(config, storage, dataset, jobs, "unit", counts)
    if outages:
        raise UserError(
            f"{dataset}: units that wait for their pictures: {len(outages)}; the first is {outages[0]}",
            "check that the hosts answer, base_url or media_folder, and fetch.allow_networks; the same command goes on "
            "with these units. If the pictures are gone for good, give --commit_outages true",
        )
    return _finish(storage, dataset, recipe, counts, len(done))


def retry_failures(config: LabelConfig) -> LabelSummary:
    """Try again what a labelled dataset could not fetch, and commit what is there now as supplementary shards.

    Nothing that is committed is touched. Units of which nothing could be had are left as they are. Raises UserError for
    a dataset that is not finished, and as `label`.
    """
    storage, dataset, recipe = _open(config)
    if not storage.exists("dataset.json"):
        raise UserError(f"{dataset}: this dataset is not finished", "run `xmodal label` to its end first")
    check_recipe(storage, recipe)
    failures = OpenFailures(storage)
    done = len(storage.names(".tar"))
    counts = InputCounts()

    def jobs() -> Iterator[UnitJob]:
        for number, records in _read_units(config, counts):
            name = unit_name(number)
            if retried := failures.retryable(name):
                posts = {post_id for post_id, _ in retried}
                yield UnitJob(
                    number=number,
                    records=[record for record in records if record.post and record.post.id in posts],
                    retry_round=failures.last_round(name) + 1,
                    retried=retried,
                )

    _run(config, storage, dataset, jobs(), "round of retries", counts)
    return _finish(storage, dataset, recipe, counts, done)


def status(dataset: str) -> str:
    """How far the run is that makes this dataset, as any machine that sees the dataset can tell.

    Raises UserError where there is no dataset.
    """
    storage = open_storage(dataset)
    num_shards = len(storage.names(".tar"))
    running = read_status(storage)
    if running is None:
        if storage.exists("dataset.json"):
            return f"{storage.url}: finished, {num_shards} shards"
        if not storage.exists("recipe.json"):
            raise UserError(
                f"{storage.url}: no dataset of xmodal", "give the folder that `dataset` names in the config"
            )
        return f"{storage.url}: no run is under way; {num_shards} shards are committed"
    return status_text(storage.url, running, num_shards, time.time())


def _open(config: LabelConfig) -> tuple[Storage, str, dict[str, Any]]:
    check_posts_file(config.posts, config.format, needs_texts=config.teacher.kind != "given")
    if config.media_folder is not None and not os.path.isdir(config.media_folder):
        raise UserError(f"media_folder: {config.media_folder}: no such folder", "give the one that the pictures lie in")
    dataset = resolve_dataset(config.dataset, os.environ)
    return open_storage(dataset, create=True), dataset, recipe_of(config)


def _run(
    config: LabelConfig, storage: Storage, dataset: str, jobs: Iterator[UnitJob], what: str, counts: InputCounts
) -> list[str]:
    """Have the jobs done and the progress shown. Returns what was not committed, and why."""
    first = next(jobs, None)
    if first is None:
        log.info("%s: nothing is left to do", dataset)
        return []

    def all_jobs() -> Iterator[UnitJob]:
        yield first
        yield from jobs

    if config.media_folder is not None:
        config = replace(config, media_folder=os.path.abspath(config.media_folder))  # tasks run in other folders
    with Progress(storage, what, counts) as progress:
        run_on_ray(config, dataset, progress.watching(all_jobs()), progress.ended)
    return progress.outages


def _finish(
    storage: Storage, dataset: str, recipe: dict[str, Any], counts: InputCounts, shards_there_before: int
) -> LabelSummary:
    check_recipe(storage, recipe)  # a run with other settings may have begun at the same time
    shards = finish(
        storage,
        describe_shard=_describe_shard,
        describe_dataset=lambda shards: {
            "teacher": _one_teacher(shards),
            "recipe": recipe,
            "rejected": dict(sorted(counts.rejected.items())),
        },
    )
    storage.delete(STATUS_NAME)
    storage.discard_leftovers(LEFTOVER_AGE_SECONDS, {STATUS_NAME})
    reasons, retryable = OpenFailures(storage).count()
    return LabelSummary(
        dataset=dataset,
        posts=counts.posts,
        media=counts.media,
        rejected=dict(sorted(counts.rejected.items())),
        samples=sum(shard.samples for shard in shards),
        failures=dict(sorted(reasons.items())),
        retryable=retryable,
        shards=shards,
        shards_there_before=shards_there_before,
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


def _read_units(config: LabelConfig, counts: InputCounts) -> Iterator[tuple[int, list[PostRecord]]]:
    to_label = selected(read_posts(config.posts, config.format, counts.read), config.select, counts.rejected)
    if config.teacher.kind == "given":
        to_label = labelled(to_label)
    for number, records in units(to_label, config.posts_per_unit):
        counts.posts += len(records)
        counts.media += sum(len(record.post.media) for record in records if record.post)
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
