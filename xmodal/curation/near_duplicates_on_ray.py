"""Near duplicates among more hashes than one machine takes: each two blocks of them are a task on Ray.

The links within all pairs of blocks are the links of all hashes, so that the groups are those of one machine. A task
may run twice or on a node that dies: it only computes. The caller has connected to Ray.
"""

import math
from typing import Any

import numpy as np

from shards.errors import UserError
from xmodal.curation import hamming
from xmodal.curation.near_duplicates import MAX_DISTANCE, links_of_blocks, pairs_of_blocks

MOST_IN_BLOCK = 1 << 23
"""Hashes. A task takes about 150 bytes for each hash of its two blocks, and minutes."""
_LEAST_IN_BLOCK = 1 << 18
"""Hashes, of which a task takes about as long as Ray takes to start it."""


def near_groups_on_ray(packed: np.ndarray, max_distance: int = MAX_DISTANCE, block: int | None = None) -> np.ndarray:
    """As `near_duplicates.near_groups`. `packed` should be a memory-mapped file, and is read here alone.

    A task compares two blocks of `block` hashes; by default as many as keep all processors of the cluster busy. The
    blocks go through Ray's object store, from node to node. Here, 8 bytes a hash are held. Raises UserError where a
    task fails on the cluster, again and again.
    """
    import ray  # takes seconds

    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    block = block or block_size(len(packed), num_cpus)
    task = ray.remote(num_cpus=1)(near_duplicate_links)
    parent = np.arange(len(packed))
    in_flight: list[Any] = []
    try:
        blocks = {begin: ray.put(np.array(packed[begin : begin + block])) for begin in range(0, len(packed), block)}
        for begin, other_begin in pairs_of_blocks(len(packed), block):
            if len(in_flight) >= 2 * num_cpus:
                in_flight = _unite_finished(ray, in_flight, parent)
            in_flight.append(task.remote(blocks[begin], begin, blocks[other_begin], other_begin, max_distance))
        while in_flight:
            in_flight = _unite_finished(ray, in_flight, parent)
    except ray.exceptions.RayError as error:
        raise UserError(
            f"ray_address: the search for near duplicates failed on the cluster: {_last_line(error)}",
            "check that all nodes have this version of xmodal, and 3 GB of memory a processor; then run it again",
        ) from error
    hamming.point_to_roots(parent)
    return parent


def block_size(num_hashes: int, num_cpus: int) -> int:
    """Hashes in a block, so that the pairs of blocks are at least as many as the processors, unless that is too few."""
    # Of b blocks there are b (b + 1) / 2 pairs.
    num_blocks = math.ceil((math.sqrt(8 * num_cpus + 1) - 1) / 2)
    return min(MOST_IN_BLOCK, max(_LEAST_IN_BLOCK, -(-num_hashes // num_blocks)))


def near_duplicate_links(
    block: np.ndarray, begin: int, other: np.ndarray, other_begin: int, max_distance: int
) -> np.ndarray:
    """The task: as `near_duplicates.links_of_blocks`, on one processor."""
    return links_of_blocks(block, begin, other, other_begin, max_distance, num_threads=1)


def _unite_finished(ray: Any, in_flight: list[Any], parent: np.ndarray) -> list[Any]:
    """Wait for a task to end and add its links; returns what is still in flight."""
    finished, waiting = ray.wait(in_flight, num_returns=1)
    for links in ray.get(finished):
        hamming.unite_all(parent, links)
    return waiting


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no more is known"])[-1]
