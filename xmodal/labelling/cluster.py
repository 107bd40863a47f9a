"""The Ray side of a label run: actors for the teachers and the limits a host, one task a unit, so many in flight.

Pictures go from a task straight to its shard, never through Ray's object store. A task may run twice or die at any
point: the commit makes that harmless.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shards.errors import UserError
from shards.storage import open_storage
from xmodal.crawl.gate import GateKeeper
from xmodal.crawl.politeness import Over, PolitenessConfig
from xmodal.labelling import metrics
from xmodal.labelling.config import LabelConfig, check_recipe
from xmodal.labelling.task import UnitJob, UnitResult, label_unit
from xmodal.labels import SoftLabel
from xmodal.posts.post import Post
from xmodal.ray_session import ray_session
from xmodal.teacher.given import GIVEN, given_labels
from xmodal.teacher.teacher import Teacher, TeacherConfig, load_teacher

log = logging.getLogger(__name__)

_TASK_RETRIES = 5
"""A task that took so many nodes with it is likelier the cause than the victim."""
_MOST_BROKEN_JOBS = 20
"""So many jobs in a row that broke, and the run ends: it is not the jobs."""
_SIZE_SECONDS = 10.0
"""The cluster's size is looked at so often: nodes come and go."""
_TEACHER_PATIENCE_SECONDS = 600.0
"""As long as it may take until a node is known to be dead and a large teacher is loaded on another one."""
_LONG_ANSWER_SECONDS = 60.0
_MOST_LOST_ANSWERS = 5
"""So many long answers that were lost with the teacher, and what it was asked is likelier the cause."""
_GATE_PAUSES_SECONDS = (0.5, 1, 2, 4, 8, 16, 0)
"""After each start of the gate that failed."""
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

    def label(self, texts: Sequence[str], identity: dict[str, str]) -> list[SoftLabel]:
        if self._teacher is None:
            raise self._problem
        # It may have been started again on another node.
        _common_identity([identity, self.identity()])
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

    async def enter(self, client: str, host: str, number: int, wanted: int) -> int | None:
        return await self._actor.enter.remote(client, host, number, wanted)

    async def leave(self, client: str, hosts: dict[str, Over]) -> bool:
        return await self._actor.leave.remote(client, hosts)

    async def forget(self, client: str) -> None:
        await self._actor.forget.remote(client)


def run_on_ray(
    config: LabelConfig,
    dataset: str,
    recipe: dict[str, Any],
    jobs: Iterable[UnitJob],
    on_result: Callable[[UnitResult], None],
) -> None:
    """Have all jobs done, a bounded number at a time; `jobs` is read as they are handed out.

    `on_result` is told of each as it ends. Raises UserError for a cluster that does not answer, a teacher that cannot
    start, and a dataset that was begun with another recipe.
    """
    # Ray takes seconds to import, and `xmodal --help` or a finished dataset need none of it.
    import ray

    with ray_session(config.ray_address), _telling_what_died(ray):
        submit = _submitter(ray, config, dataset, recipe)
        limit = _Limit(ray, config.max_units_in_flight, config.cpus_per_unit)
        _run_jobs(submit, limit, jobs, _Finished(ray, on_result))


@contextmanager
def _telling_what_died(ray: Any) -> Iterator[None]:
    """Raise UserError for one that a task or an actor raised, and where an actor is gone for good."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ray.exceptions.ActorDiedError):
            what = "the gate" if _GateActor.__name__ in str(cause) else "a teacher"
            raise UserError(
                f"{what} of this run has ended and was not started again: {_last_line(cause)}",
                "see Ray's logs for the cause; the same command goes on with what is left",
            ) from error
        raise


def _run_jobs(
    submit: Callable[[UnitJob], Any], limit: "_Limit", jobs: Iterable[UnitJob], finished: "_Finished"
) -> None:
    in_flight: dict[Any, str] = {}
    for job in jobs:
        while len(in_flight) >= limit.now():
            finished.collect(in_flight)
        in_flight[submit(job)] = job.name
    while in_flight:
        finished.collect(in_flight)


class _Limit:
    """How many jobs may be in flight: what the config says, or twice as many as the cluster has processors for."""

    def __init__(self, ray: Any, configured: int, cpus_per_unit: float = 1.0) -> None:
        self._ray, self._configured, self._cpus_per_unit = ray, configured, cpus_per_unit
        self._limit, self._looked = configured, float("-inf")

    def now(self) -> int:
        if not self._configured and time.monotonic() - self._looked > _SIZE_SECONDS:
            self._limit = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1) / self._cpus_per_unit))
            self._looked = time.monotonic()
        return self._limit


class _Finished:
    """Tells of each job as it ends. One that broke costs itself alone, unless all do."""

    def __init__(self, ray: Any, on_result: Callable[[UnitResult], None]) -> None:
        self._ray, self._on_result = ray, on_result
        self._num_broken = 0

    def collect(self, in_flight: dict[Any, str]) -> None:
        """Wait for one to end and take it out. Raises its error where it concerns all of them."""
        (reference,), _ = self._ray.wait(list(in_flight), num_returns=1)
        name = in_flight.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._num_broken += 1
            if isinstance(cause, UserError | self._ray.exceptions.ActorDiedError):
                raise
            log.debug("%s broke", name, exc_info=error)
            broken = f"{type(cause).__name__}: {_last_line(cause)}"
            if self._num_broken >= _MOST_BROKEN_JOBS:
                raise UserError(
                    f"{name} is the last of {self._num_broken} units in a row that an error ended: {broken}",
                    "see Ray's logs for more; the same command goes on with these units and the rest",
                ) from error
            result = UnitResult(name=name, is_committed=False, broken=broken)
        else:
            self._num_broken = 0
        self._on_result(result)


def _submitter(ray: Any, config: LabelConfig, dataset: str, recipe: dict[str, Any]) -> Callable[[UnitJob], Any]:
    """Start the actors of a run. Returns what hands a job to Ray."""
    if config.teacher.kind == "given":
        teachers, identity = [None], GIVEN
    else:
        teachers, identity = _start_teachers(ray, config.teacher)
    gate = _start_gate(ray, config.politeness) if config.politeness.has_limits else None
    task = ray.remote(num_cpus=config.cpus_per_unit, max_retries=_TASK_RETRIES)(_run_job)

    def submit(job: UnitJob) -> Any:
        return task.remote(config, dataset, recipe, job, teachers[job.number % len(teachers)], identity, gate)

    return submit


def _start_teachers(ray: Any, config: TeacherConfig) -> tuple[list[Any], dict[str, str]]:
    """The teachers' actors, once they have loaded, and their common name and revision."""
    num_gpus = gpus_per_teacher(config, int(ray.cluster_resources().get("GPU", 0)))
    check_processors(config, [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]])
    teacher_class = ray.remote(num_cpus=config.cpus_per_actor, num_gpus=num_gpus, max_restarts=-1)(_TeacherActor)
    teachers = [teacher_class.remote(config) for _ in range(config.num_actors)]
    try:
        identities = [_answer(teacher.identity.remote) for teacher in teachers]
    except ray.exceptions.ActorDiedError as error:
        raise UserError(
            f"teacher.kind: {config.kind}: the teacher could not start: {_last_line(error)}",
            "check the teacher section of the config; `xmodal doctor` says what this machine has",
        ) from error
    return teachers, _common_identity(identities)


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
    return _first_that_begins(ray, lambda: gate_class.remote(config))


def _first_that_begins(ray: Any, start: Callable[[], Any]) -> Any:
    """The gate, started anew, after a pause, for as long as Ray ends it before it begins.

    Seen on a busy machine: Ray takes it that nobody holds the gate any more, and takes it so of each new one until it
    reaches this driver again.
    """
    why = ""
    for pause in _GATE_PAUSES_SECONDS:
        gate = start()
        try:
            ray.get(gate.forget.remote(""))
        except ray.exceptions.ActorDiedError as error:
            why = _last_line(error)
            log.debug("the gate did not start: %s", why)
            time.sleep(pause)
        else:
            return gate
    raise UserError(
        f"Ray ended the gate of this run before it began, {len(_GATE_PAUSES_SECONDS)} times: {why}",
        "see Ray's logs for more; the same command goes on",
    )


def _run_job(
    config: LabelConfig,
    dataset: str,
    recipe: dict[str, Any],
    job: UnitJob,
    teacher: Any,
    identity: dict[str, str],
    gate: Any,
) -> UnitResult:
    """`teacher` is None where the posts came with their labels."""

    def label_posts(posts: Sequence[Post]) -> Sequence[SoftLabel]:
        if teacher is None:
            return given_labels(posts)
        texts = [post.text for post in posts]
        return _answer(lambda: teacher.label.remote(texts, identity))

    return label_unit(
        config,
        dataset,
        job,
        label_posts=label_posts,
        teacher=identity,
        keeper=_GateHandle(gate) if gate else None,
        # Another driver, with other settings, may have begun at the same time.
        before_commit=lambda: check_recipe(open_storage(dataset), recipe),
    )


def _answer(ask: Callable[[], Any]) -> Any:
    """What a teacher says to a call of its actor, made again for as long as it may be on its way back.

    Its node may have died or be cut off; Ray notices after a minute and starts it elsewhere. Ray's own retries are
    over long before that. Raises ActorUnavailableError where it stays away, or is lost again and again: what it was
    asked may be what ends it.
    """
    import ray

    away_since, pause, num_lost = time.monotonic(), 0.5, 0
    while True:
        asked = time.monotonic()
        try:
            return ray.get(ask())
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() - asked > _LONG_ANSWER_SECONDS:
                # It was there, and had others' texts to read, or these.
                away_since, pause = time.monotonic(), 0.5
                num_lost += 1
            if num_lost >= _MOST_LOST_ANSWERS or time.monotonic() - away_since > _TEACHER_PATIENCE_SECONDS:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def _common_identity(identities: Sequence[dict[str, str]]) -> dict[str, str]:
    """Name and revision of the teacher that all actors hold. Raises UserError where they hold different ones."""
    for identity in identities:
        if identity != identities[0]:
            raise UserError(
                f"teacher.model: one node has {identities[0]}, another {identity}",
                "pin teacher.revision and teacher.precision, or give all nodes the same folder",
            )
    return identities[0]


def check_processors(config: TeacherConfig, cpus_of_nodes: Sequence[int]) -> None:
    """Raise UserError where a teacher fits no node, or all of them would leave no processor to the units."""
    num_cpus = sum(cpus_of_nodes)
    if config.cpus_per_actor > max(cpus_of_nodes, default=0):
        raise UserError(
            f"teacher.cpus_per_actor: {config.cpus_per_actor}: no node of the cluster has so many processors",
            f"give at most {max(cpus_of_nodes, default=0)}, or add larger nodes",
        )
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


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no more is known"])[-1]
