"""The ranks of a job: they meet, work together, as often as they like, and part."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.heartbeat import Heartbeat
from xmodal.training.ranks import (
    RANK_VARIABLES,
    Place,
    Ranks,
    gather_places,
    lost_ranks,
    require_own_gpus,
    start_process_group,
)


@contextmanager
def joined_ranks(timeout: float) -> Iterator[Ranks]:
    """Within it, this process is one of the job's ranks, which wait for each other for `timeout` seconds at most.

    Ranks other than the first log warnings alone. Raises UserError where they do not meet, or one of them is lost.
    """
    with _own_variables():
        yield from _joined_ranks(timeout)


@contextmanager
def _own_variables() -> Iterator[None]:
    """What is said of ranks in the environment within it goes afterwards: it would hold for all that this process does
    and starts then, and by then the port is another's."""
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _joined_ranks(timeout: float) -> Iterator[Ranks]:
    ranks = start_process_group(timeout)
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    places: list[Place] = []
    try:
        with Heartbeat(ranks, timeout, lambda lost: _lost_error(ranks, places, lost)) as heartbeat:
            places += gather_places(ranks)
            require_own_gpus(places)
            heartbeat.start()
            host = places[ranks.rank].host
            yield replace(ranks, num_on_host=sum(place.host == host for place in places))
    except RuntimeError as error:
        # The backends have no class of their own for it. Its traceback would bury what the rank itself has said.
        if not _LOST_RANK.search(str(error)):
            raise
        raise _lost_error(ranks, places, lost_ranks(ranks)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost_error(ranks: Ranks, places: Sequence[Place], lost: Sequence[int]) -> UserError:
    names = ", ".join(f"{rank} on {places[rank].host if places else 'its host'}" for rank in lost)
    return UserError(
        f"rank {ranks.rank}: another rank has ended or does not answer, so this one cannot go on"
        + (f": rank {names}" if names else ""),
        "see what the other rank says; started again, the run goes on from its last checkpoint",
    )


_LOST_RANK = re.compile(
    "connection (closed|reset|refused)|socket closed|remote process exited|timed out waiting|application timeout"
    "|wait timeout|connection was likely closed|broken pipe",  # of the store
    re.IGNORECASE,
)
