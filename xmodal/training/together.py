"""What ranks do together where one of them may fail: its UserError is raised on all, and none waits for it in vain."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.agreement import gather_objects
from xmodal.training.ranks import Ranks

_ROUND_SECONDS = 1.0


def all_do(work: Callable[[], object], ranks: Ranks) -> None:
    """Have each rank do its own `work`, and wait for all; without collective operations in it."""
    mistake = None
    try:
        work()
    except UserError as error:
        mistake = error
    for found in gather_objects(mistake, ranks):
        if found:
            raise found


def first_does(work: Callable[[], object], ranks: Ranks) -> None:
    """Have the first rank do what may take longer than ranks wait for each other.

    A thread of its own does it; about every second all ranks ask whether it is done.
    """
    doing: Future[object] | None = None
    if ranks.is_first:
        thread = ThreadPoolExecutor(1, thread_name_prefix="first-does")
        doing = thread.submit(work)
        thread.shutdown(wait=False)
    said: list[bool | UserError] = [False]
    while not said[0]:
        if doing and wait([doing], _ROUND_SECONDS).done:
            said = [_outcome(doing)]
        dist.broadcast_object_list(said)
    if isinstance(said[0], UserError):
        raise said[0]


def _outcome(done: Future[object]) -> bool | UserError:
    try:
        done.result()
    except UserError as error:
        return error
    return True
