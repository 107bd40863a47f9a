"""A mistake that one rank finds ends all of them: the first one tells it, and none waits for those that have ended."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar, cast

import torch.distributed as dist

from shards.errors import ToldElsewhereError, UserError

T = TypeVar("T")

_ROUND_SECONDS = 1.0

_KEY = "xmodal/a rank has failed"
"""In the store by which the ranks have met."""

_Told = tuple[str, str] | None
"""What is wrong and what to do; an error itself may not be one that can be sent."""


def by_first(work: Callable[[], T]) -> T:
    """Have the first rank do something, while the others wait: what it gives, which must be picklable, on all of them.

    Its UserError is raised on all of them. A process without ranks is the first.
    """
    if not dist.is_initialized():
        return work()
    outcome: list[tuple[T | None, _Told] | None] = [_attempt(work) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome)
    result, told = cast(tuple[T, _Told], outcome[0])
    if told:
        raise _error(*told)
    return result


def by_first_at_length(work: Callable[[], object]) -> None:
    """Have the first rank do what may take longer than ranks wait for each other; its UserError is raised on all.

    A thread of its own does it; about every second all ranks ask whether it is done.
    """
    doing: Future[_Told] | None = None
    if dist.get_rank() == 0:
        thread = ThreadPoolExecutor(1, thread_name_prefix="by-first")
        doing = thread.submit(lambda: _attempt(work)[1])
        thread.shutdown(wait=False)
    outcome: list[tuple[_Told] | None] = [None]
    while outcome[0] is None:
        if doing and wait([doing], _ROUND_SECONDS).done:
            outcome = [(doing.result(),)]
        dist.broadcast_object_list(outcome)
    (told,) = outcome[0]
    if told:
        raise _error(*told)


def by_all(work: Callable[[], T]) -> T:
    """Have each rank do something; once all have, a UserError of one of them is raised on all.

    Work that takes long asks meanwhile whether `another_has_failed`, and then may give anything.
    """
    if not dist.is_initialized():
        return work()
    result, own = None, None
    try:
        result = work()
    except UserError as error:
        own = error
        _store().set(_KEY, "")
    if mistake := mistake_of_all(own):
        # Nobody asks for it any more, and whoever catches the error and begins anew is not to find it.
        if own:
            _store().delete_key(_KEY)
        dist.barrier()
        raise mistake from own
    return cast(T, result)


def mistake_of_all(own: UserError | None) -> UserError | None:
    """What is wrong on the first of the ranks on which something is, for all to raise; None where nothing is.

    All ranks call it, each with what is wrong on its `own`; the first alone tells it.
    """
    told_by: list[_Told] = [None] * dist.get_world_size()
    dist.all_gather_object(told_by, (own.what, own.remedy) if own else None)
    for rank, told in enumerate(told_by):
        if told:
            what, remedy = told
            return _error(f"rank {rank}: {what}" if rank else what, remedy)
    return None


def another_has_failed() -> bool:
    """Whether a rank has a UserError already, within `by_all`, so that what this one does is for nothing."""
    return dist.is_initialized() and _store().check([_KEY])


def _attempt(work: Callable[[], T]) -> tuple[T | None, _Told]:
    try:
        return work(), None
    except UserError as error:
        return None, (error.what, error.remedy)


def _error(what: str, remedy: str) -> UserError:
    return (ToldElsewhereError if dist.get_rank() else UserError)(what, remedy)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
