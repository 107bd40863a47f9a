"""Posts → shards: the driver. It cuts the posts into units, skips what is committed, and finishes the dataset.

It may die at any point: run again, it goes on.
"""

import itertools
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from shards.dataset import ShardSummary, finish, shard_names
from shards.errors import UserError
from shards.generations import newest_generations
from shards.scrub_marker import refuse_scrubs
from shards.storage import Storage, open_storage
from shards.tombstones import Tombstones, read_tombstones
from shards.writer import recover_failures
from xmodal.labelling.cluster import run_on_ray
from xmodal.labelling.config import LabelConfig, check_recipe, pin_recipe, recipe_of
from xmodal.labelling.failures import OpenFailures
from xmodal.labelling.progress import InputCounts, Progress, read_status, status_text
from xmodal.labelling.summaries import describe_shard, one_teacher
from xmodal.labelling.task import UnitJob
from xmodal.labelling.units import unit_name, unit_of
from xmodal.posts.files import find_files
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
    """Rule of `select` → how many posts it left out; `forgotten` counts those of the tombstones."""
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
    storage, dataset, posts, recipe = _open(config)
    pin_recipe(storage, recipe)
    counts = InputCounts()
    with _announced(storage, "unit", counts) as progress:
        done = newest_generations(name.removesuffix(".tar") for name in storage.names(".tar")).keys()
        _check_rounds(storage, done)

        def jobs() -> Iterator[UnitJob]:
            for number, records in _read_units(config, posts, counts, read_tombstones(storage)):
                if unit_name(number) in done:
                    counts.units_passed_over += 1
                else:
                    yield UnitJob(number=number, records=records)

        _run(config, dataset, recipe, jobs(), progress)
        _refuse_waiting_units(dataset, progress.outages, progress.broken)
        return _finish(storage, dataset, recipe, counts, len(done), progress)


def retry_failures(config: LabelConfig) -> LabelSummary:
    """Try again what a labelled dataset could not fetch, and commit what is there now as supplementary shards.

    Nothing that is committed is touched. Units of which nothing could be had are left as they are. Raises UserError for
    a dataset that is not finished, and as `label`.
    """
    storage, dataset, posts, recipe = _open(config)
    if not storage.exists("dataset.json"):
        raise UserError(f"{dataset}: this dataset is not finished", "run `xmodal label` to its end first")
    check_recipe(storage, recipe)
    counts = InputCounts()
    with _announced(storage, "round of retries", counts) as progress:
        for name in shard_names(storage):
            # A writer may have died between a shard's commit and this.
            recover_failures(storage, name.removesuffix(".tar"))
        failures = OpenFailures(storage)
        done = len(shard_names(storage))
        tombstones = read_tombstones(storage)

        def jobs() -> Iterator[UnitJob]:
            for number, records in _read_units(config, posts, counts, tombstones):
                name = unit_name(number)
                retried = failures.retryable(name)
                post_ids = {post_id for post_id, _ in retried}
                # None is left where they were all forgotten meanwhile.
                if left := [record for record in records if record.post and record.post.id in post_ids]:
                    round_number = failures.last_round(name) + 1
                    yield UnitJob(number=number, records=left, retry_round=round_number, retried=retried)

        _run(config, dataset, recipe, jobs(), progress)
        _refuse_waiting_units(dataset, [], progress.broken)
        return _finish(storage, dataset, recipe, counts, done, progress)


@contextmanager
def _announced(storage: Storage, what: str, counts: InputCounts) -> Iterator[Progress]:
    """Tell that this run is under way. Raises UserError while posts are being scrubbed from the dataset."""
    refuse_scrubs(storage)  # before it is told, since that would end them
    with Progress(storage, what, counts) as progress:
        refuse_scrubs(storage)  # after it, since one may have begun meanwhile that has not seen it
        yield progress


def _check_rounds(storage: Storage, done: Collection[str]) -> None:
    """Raise UserError for rounds of retries whose unit is gone: made again, it would hold their samples twice."""
    for name in sorted(done):
        unit = unit_of(name)
        if unit is not None and unit not in done:
            raise UserError(
                f"{storage.url}/{name}.tar: the shard of its unit, {unit}.tar, is not there",
                "restore it; or remove this one too, with what else has its name, to have the unit made again",
            )


def status(dataset: str) -> str:
    """How far the run is that makes this dataset, as any machine that sees the dataset can tell.

    Raises UserError where there is no dataset.
    """
    storage = open_storage(dataset)
    num_shards = len(shard_names(storage))
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


def _open(config: LabelConfig) -> tuple[Storage, str, list[str], dict[str, Any]]:
    """The dataset, where it lies, the files of posts, and the recipe."""
    posts = find_files(config.posts)
    check_posts_file(posts, config.format, needs_texts=config.teacher.kind != "given")
    if config.media_folder is not None and not os.path.isdir(config.media_folder):
        raise UserError(f"media_folder: {config.media_folder}: no such folder", "give the one that the pictures lie in")
    dataset = resolve_dataset(config.dataset, os.environ)
    return open_storage(dataset, create=True), dataset, posts, recipe_of(config, posts)


def _run(
    config: LabelConfig, dataset: str, recipe: dict[str, Any], jobs: Iterator[UnitJob], progress: Progress
) -> None:
    """Have the jobs done and the progress shown."""
    if config.media_folder is not None:
        config = replace(config, media_folder=os.path.abspath(config.media_folder))  # tasks run in other folders
    first = next(jobs, None)
    if first is None:
        log.info("%s: nothing is left to do", dataset)
    else:
        run_on_ray(config, dataset, recipe, progress.watching(itertools.chain([first], jobs)), progress.ended)


def _refuse_waiting_units(dataset: str, outages: Sequence[str], broken: Sequence[str]) -> None:
    """Raise UserError where units were not committed."""
    if broken:
        raise UserError(
            f"{dataset}: units that an error ended: {len(broken)}; the first is {broken[0]}",
            "see Ray's logs for more. The same command tries these units again; all others are committed or wait",
        )
    if outages:
        raise UserError(
            f"{dataset}: units that wait for their pictures: {len(outages)}; the first is {outages[0]}",
            "check that the hosts answer, base_url or media_folder, and fetch.allow_networks; the same command goes on "
            "with these units. If the pictures are gone for good, give --commit_outages true",
        )


def _finish(
    storage: Storage,
    dataset: str,
    recipe: dict[str, Any],
    counts: InputCounts,
    shards_there_before: int,
    progress: Progress,
) -> LabelSummary:
    progress.finishing()
    refuse_scrubs(storage)  # one may have begun while this run could not reach the dataset to say that it lives
    check_recipe(storage, recipe)  # a run with other settings may have begun at the same time
    shards = finish(
        storage,
        describe_shard=describe_shard,
        describe_dataset=lambda shards: {
            "teacher": one_teacher(shards),
            "recipe": recipe,
            "rejected": dict(sorted(counts.rejected.items())),
        },
    )
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


def _read_units(
    config: LabelConfig, posts: Sequence[str], counts: InputCounts, tombstones: Tombstones
) -> Iterator[tuple[int, list[PostRecord]]]:
    """The units, the same ones whoever is forgotten: what a unit is made of decides where its shard is looked for."""
    to_label = selected(read_posts(posts, config.format, counts.read), config.select, counts.rejected)
    if config.teacher.kind == "given":
        to_label = labelled(to_label)
    for number, all_records in units(to_label, config.posts_per_unit):
        records = [record for record in all_records if not _is_forgotten(record, tombstones)]
        if len(records) < len(all_records):
            counts.rejected["forgotten"] += len(all_records) - len(records)
        counts.posts += len(records)
        counts.media += sum(len(record.post.media) for record in records if record.post)
        yield number, records


def _is_forgotten(record: PostRecord, tombstones: Tombstones) -> bool:
    post = record.post
    return tombstones.hold(post.id, post.author) if post else tombstones.hold(record.post_id, record.author)
