"""A connection to Ray, for as long as a command needs it: a cluster that runs, or a new Ray on this machine."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from shards.errors import UserError

_OBJECT_STORE_BYTES = 200_000_000
"""Of a Ray on this machine: texts of the units in flight; pictures never pass through it."""


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Be connected to the Ray at `address`, else at $RAY_ADDRESS, else to a new one on this machine.

    Raises UserError where no cluster answers at the address.
    """
    # Ray takes seconds to import, and most commands need none of it.
    import ray

    _start_ray(address or os.environ.get("RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        try:
            _check_listener(address)
            ray.init(address=address, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"ray_address: {address}: no Ray cluster answers",
                "start one by `ray start --head`; check the port (6379 by default) and the cluster's RAY_AUTH_TOKEN",
            ) from error
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )


def _check_listener(address: str) -> None:
    """Raise ConnectionError if nothing listens at `host:port`: Ray itself would go on asking for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(address) from error
