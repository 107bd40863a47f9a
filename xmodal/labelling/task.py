"""What one Ray task does: fetch a unit's pictures while the teacher reads its texts, and commit its shard."""

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shards.storage import open_storage
from shards.writer import Sample, recover_failures, write_shard
from xmodal.crawl.gate import Keeper, LocalGate, SharedGate
from xmodal.crawl.politeness import HostGate
from xmodal.labelling import metrics
from xmodal.labelling.config import LabelConfig
from xmodal.labelling.unit import UnitOutageError, unit_samples
from xmodal.labelling.units import round_name, unit_name
from xmodal.labels import SoftLabel
from xmodal.posts.post import Post
from xmodal.posts.readers import PostRecord

T = TypeVar("T")

# Samples that may be there before they are written; few enough that their pictures take little memory.
_AHEAD = 16


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """A unit that is to be labelled, or what of it is to be tried again."""

    number: int
    records: list[PostRecord]
    retry_round: int = 0
    """0 for the unit itself."""
    retried: frozenset[tuple[str, int]] | None = None
    """Of a round of retries: the pictures to be tried again, by post id and media number."""

    @property
    def name(self) -> str:
        """Name of the shard, without its ending."""
        return round_name(unit_name(self.number), self.retry_round)


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a job."""

    name: str
    is_committed: bool
    """False where the unit waits for another run."""
    was_there: bool = False
    """Whether another writer had committed it."""
    num_samples: int = 0
    num_bytes: int = 0
    """Of the pictures."""
    failures: Counter[str] = field(default_factory=Counter)
    outage: str | None = None
    """Why no picture of the unit could be had; then it is not committed."""
    broken: str | None = None
    """The error that ended it, likewise."""


def label_unit(
    config: LabelConfig,
    dataset: str,
    job: UnitJob,
    *,
    label_posts: Callable[[Sequence[Post]], Sequence[SoftLabel]],
    teacher: dict[str, str],
    keeper: Keeper | None,
    before_commit: Callable[[], None],
) -> UnitResult:
    """Fetch, label and commit. `label_posts` gives each post of the unit its soft label; it may block.

    `keeper` holds the limits a host for the whole cluster; without one, the task keeps its own. `before_commit()` is
    called when all samples are there, and may raise.
    """
    storage = open_storage(dataset, create=True)
    if storage.exists(f"{job.name}.tar"):
        recover_failures(storage, job.name)
        return UnitResult(name=job.name, is_committed=True, was_there=True)
    shard_failures: list[dict[str, Any]] = []
    gate: HostGate = SharedGate(keeper) if keeper else LocalGate(config.politeness)
    samples = unit_samples(
        job.records,
        label_posts=label_posts,
        teacher=teacher,
        base_url=config.base_url,
        media_folder=config.media_folder,
        fetch=config.fetch,
        gate=gate,
        pictures=config.pictures,
        keep_text=config.keep_text,
        commit_outages=config.commit_outages,
        retried=job.retried,
        shard_failures=shard_failures,
    )
    if isinstance(gate, SharedGate):
        samples = _within_gate(gate, samples)
    num_bytes = 0

    def counted(samples: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal num_bytes
        for sample in samples:
            num_bytes += len(sample.image)
            yield sample
        before_commit()

    try:
        with drained(samples) as iterator:
            shard = write_shard(storage, job.name, counted(iterator), shard_failures)
    except UnitOutageError as outage:
        told = f"none of its {outage.num_media} pictures could be had ({outage.reasons})"
        return UnitResult(name=job.name, is_committed=False, outage=told)
    if not shard.won:
        return UnitResult(name=job.name, is_committed=True, was_there=True)
    reasons = metrics.reasons_of(shard_failures)
    metrics.count_unit(num_pictures=shard.num_samples, num_bytes=num_bytes, reasons=reasons)
    return UnitResult(
        name=job.name, is_committed=True, num_samples=shard.num_samples, num_bytes=num_bytes, failures=reasons
    )


async def _within_gate(gate: SharedGate, samples: AsyncIterator[Sample]) -> AsyncIterator[Sample]:
    async with gate:
        async for sample in samples:
            yield sample


@contextmanager
def drained(source: AsyncIterator[T]) -> Iterator[Iterator[T]]:
    """An async iterator as a plain one. Its event loop runs in a thread of its own, and works up to `_AHEAD` ahead.

    The two threads meet once in many items: a thread that waits for another one's turn at the interpreter may wait for
    milliseconds.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event-loop", daemon=True)
    thread.start()
    items: queue.SimpleQueue[tuple[T, ...]] = queue.SimpleQueue()
    room = asyncio.Semaphore(_AHEAD)

    async def pump() -> None:
        try:
            async for item in source:
                await room.acquire()
                items.put((item,))
        finally:
            items.put(())
            if aclose := getattr(source, "aclose", None):
                await aclose()

    def make_room() -> None:
        for _ in range(_AHEAD // 2):
            room.release()

    def taken() -> Iterator[T]:
        num_taken = 0
        while item := items.get():
            yield item[0]
            num_taken += 1
            if num_taken % (_AHEAD // 2) == 0:
                loop.call_soon_threadsafe(make_room)
        pumping.result()

    pumping = asyncio.run_coroutine_threadsafe(pump(), loop)
    try:
        yield taken()
    finally:
        pumping.cancel()
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_tasks() -> None:
    """Wait for all tasks of this loop to end; they have been cancelled, or are done."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
