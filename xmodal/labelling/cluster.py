"""The Ray side of a label run: actors for the teachers and the limits a host, one task a unit, so many in flight.

Pictures go from a task straight to its shard, never through Ray's object store. A task may run twice or die at any
point: the commit makes that harmless.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shards.errors import UserError
from xmodal.crawl.gate import GateKeeper
from xmodal.crawl.politeness import Over, PolitenessConfig
from xmodal.labelling import metrics
from xmodal.labelling.config import LabelConfig
from xmodal.labelling.task import UnitJob, UnitResult, label_unit
from xmodal.labels import SoftLabel
from xmodal.posts.post import Post
from xmodal.teacher.given import GIVEN, given_labels
from xmodal.teacher.teacher import Teacher, TeacherConfig, load_teacher

_TASK_RETRIES = 5
"""A task that took so many nodes with it is likelier the cause than the victim."""
_TEACHER_PATIENCE_SECONDS = 600.0
"""As long as it may take until a node is known to be dead and a large teacher is loaded on another one."""
_SHOWN_HOSTS = 20
_METRICS_SECONDS = 5.0


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
        started, tokens_before = time.monotonic(), self._teacher.num_tokens
        labels = self._teacher.label(texts)
        num_tokens = self._teacher.num_tokens - tokens_before
        metrics.count_texts(num_texts=len(texts), num_tokens=num_tokens, seconds=time.monotonic() - started)
        return labels

    def identity(self) -> dict[str, str]:
        if self._teacher is None:
            raise self._problem
        return {"name": self._teacher.name, "revision": self._teacher.revision}


class _GateActor(GateKeeper):
    """The limits a host, for all tasks of the run."""

    def __init__(self, config: PolitenessConfig) -> None:
        super().__init__(config)
        self._shown = 0.0

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        counts = await super().leave(client, hosts)
        if time.monotonic() - self._shown > _METRICS_SECONDS:
            self._shown = time.monotonic()
            metrics.show_hosts(self.busiest(_SHOWN_HOSTS))
        return counts


class _GateHandle:
    """The `Keeper` that a task sees: calls of the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def enter(self, client: str, host: str, wanted: int) -> int:
        return await self._actor.enter.remote(client, host, wanted)

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        return await self._actor.leave.remote(client, hosts)

    async def forget(self, client: str) -> None:
        await self._actor.forget.remote(client)


def run_on_ray(
    config: LabelConfig, dataset: str, jobs: Iterable[UnitJob], on_result: Callable[[UnitResult], None]
) -> None:
    """Have all jobs done, a bounded number at a time; `jobs` is read as they are handed out.

    `on_result` is told of each as it ends. Raises UserError for a cluster that does not answer and a teacher that
    cannot start.
    """
    # Ray takes seconds to import, and `xmodal --help` or a finished dataset need none of it.
    import ray

    _start_ray(config.ray_address)
    try:
        submit = _submitter(ray, config, dataset)
        limit = config.max_units_in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        in_flight: list[Any] = []
        for job in jobs:
            while len(in_flight) >= limit:
                in_flight = _collect_finished(ray, in_flight, on_result)
            in_flight.append(submit(job))
        while in_flight:
            in_flight = _collect_finished(ray, in_flight, on_result)
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


def _submitter(ray: Any, config: LabelConfig, dataset: str) -> Callable[[UnitJob], Any]:
    """Start the actors of a run. Returns what hands a job to Ray."""
    if config.teacher.kind == "given":
        teachers, identity = [None], GIVEN
    else:
        teachers, identity = _start_teachers(ray, config.teacher)
    gate = _start_gate(ray, config.politeness) if config.politeness.has_limits else None
    task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_run_job)

    def submit(job: UnitJob) -> Any:
        return task.remote(config, dataset, job, teachers[job.number % len(teachers)], identity, gate)

    return submit


def _start_teachers(ray: Any, config: TeacherConfig) -> tuple[list[Any], dict[str, str]]:
    """The teachers' actors, once they have loaded, and their common name and revision."""
    num_gpus = gpus_per_teacher(config, int(ray.cluster_resources().get("GPU", 0)))
    check_processors(config, int(ray.cluster_resources().get("CPU", 0)))
    teacher_class = ray.remote(num_cpus=config.cpus_per_actor, num_gpus=num_gpus, max_restarts=-1)(_TeacherActor)
    teachers = [teacher_class.remote(config) for _ in range(config.num_actors)]
    return teachers, _common_identity(ray.get([teacher.identity.remote() for teacher in teachers]))


def _start_gate(ray: Any, config: PolitenessConfig) -> Any:
    """On the driver's own node: it lives as long as the driver does, and no other node's end takes it away."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    gate_class = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        # Whoever waits for a host is a call that has not returned; those must never keep a `leave` from coming in.
        max_concurrency=1_000_000,
        scheduling_strategy=here,
    )(_GateActor)
    return gate_class.remote(config)


def _run_job(
    config: LabelConfig, dataset: str, job: UnitJob, teacher: Any, identity: dict[str, str], gate: Any
) -> UnitResult:
    """`teacher` is None where the posts came with their labels."""

    def label_posts(posts: Sequence[Post]) -> Sequence[SoftLabel]:
        return given_labels(posts) if teacher is None else _labels_of(teacher, [post.text for post in posts])

    return label_unit(
        config,
        dataset,
        job,
        label_posts=label_posts,
        teacher=identity,
        keeper=_GateHandle(gate) if gate else None,
    )


def _labels_of(teacher: Any, texts: Sequence[str]) -> list[SoftLabel]:
    """What the actor says of the texts, asked again for as long as it may be on its way back.

    Its node may have died or be cut off; Ray notices after a minute and starts it elsewhere. Ray's own retries are
    over long before that. Raises UserError where the teacher stays away: these texts may be what ends it.
    """
    import ray

    started, pause = time.monotonic(), 0.5
    while True:
        try:
            return ray.get(teacher.label.remote(texts))
        except ray.exceptions.ActorUnavailableError as error:
            if time.monotonic() - started > _TEACHER_PATIENCE_SECONDS:
                raise UserError(
                    f"teacher: it ended again and again over one unit, or did not come back: {_last_line(error)}",
                    "see Ray's logs of it for the cause, such as too little memory; the same command goes on",
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def _collect_finished(ray: Any, in_flight: list[Any], on_result: Callable[[UnitResult], None]) -> list[Any]:
    """Wait for a job to end and tell of it; returns what is still in flight."""
    finished, waiting = ray.wait(in_flight, num_returns=1)
    for result in ray.get(finished):
        on_result(result)
    return waiting


def _common_identity(identities: Sequence[dict[str, str]]) -> dict[str, str]:
    """Name and revision of the teacher that all actors hold. Raises UserError where they hold different ones."""
    for identity in identities:
        if identity != identities[0]:
            raise UserError(
                f"teacher.model: one node has {identities[0]}, another {identity}",
                "pin teacher.revision and teacher.precision, or give all nodes the same folder",
            )
    return identities[0]


def check_processors(config: TeacherConfig, num_cpus: int) -> None:
    """Raise UserError where the teachers would leave none of the cluster's processors to the units."""
    if config.cpus_per_actor and config.num_actors * config.cpus_per_actor >= num_cpus:
        raise UserError(
            f"teacher.cpus_per_actor: {config.num_actors} teachers of {config.cpus_per_actor} processors leave none of "
            f"the cluster's {num_cpus} to fetch pictures",
            "give fewer, or add nodes",
        )


def gpus_per_teacher(config: TeacherConfig, num_gpus: int) -> int:
    """How many of the cluster's `num_gpus` each teacher takes. Raises UserError where they are too few for all."""
    if not config.uses_gpu or not num_gpus:
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


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
