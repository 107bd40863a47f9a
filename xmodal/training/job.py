"""The ranks of a job: they meet, work together, as often as they like, and part."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.agreement import gather_objects
from xmodal.training.ranks import RANK_VARIABLES, Ranks, lost_ranks, start_process_group


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
    hosts: list[str] = []
    try:
        hosts = gather_objects(socket.gethostname(), ranks)
        yield ranks
    except RuntimeError as error:
        # The backends have no class of their own for it. Its traceback would bury what the rank itself has said.
        if not _LOST_RANK.search(str(error)):
            raise
        lost = ", ".join(f"{rank} on {hosts[rank] if hosts else 'its host'}" for rank in lost_ranks(ranks))
        raise UserError(
            f"rank {ranks.rank}: another rank has ended or does not answer, so this one cannot go on"
            + (f": rank {lost}" if lost else ""),
            "see what the other rank says; started again, the run goes on from its last checkpoint",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


_LOST_RANK = re.compile(
    "connection (closed|reset|refused)|socket closed|remote process exited|timed out waiting|application timeout",
    re.IGNORECASE,
)
