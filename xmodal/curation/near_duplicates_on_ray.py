"""Near duplicates among more hashes than one machine takes: each two blocks of them are a task on Ray.

The links within all pairs of blocks are the links of all hashes, so that the groups are those of one machine. A task
may run twice or on a node that dies: it only computes. The caller has connected to Ray.
"""

from typing import Any

import numpy as np

from xmodal.curation import hamming
from xmodal.curation.near_duplicates import MAX_DISTANCE, links_of_blocks, pairs_of_blocks

BLOCK = 1 << 23
"""Hashes. A task takes about 150 bytes for each hash of its two blocks, and minutes."""


def near_groups_on_ray(packed: np.ndarray, max_distance: int = MAX_DISTANCE, block: int = BLOCK) -> np.ndarray:
    """As `near_duplicates.near_groups`. `packed` should be a memory-mapped file, and is read here alone.

    The blocks go through Ray's object store, from node to node. Here, 8 bytes a hash are held.
    """
    import ray  # takes seconds

    task = ray.remote(num_cpus=1)(_links)
    blocks = {begin: ray.put(np.array(packed[begin : begin + block])) for begin in range(0, len(packed), block)}
    parent = np.arange(len(packed))
    most_in_flight = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    in_flight: list[Any] = []
    for begin, other_begin in pairs_of_blocks(len(packed), block):
        if len(in_flight) >= most_in_flight:
            in_flight = _unite_finished(ray, in_flight, parent)
        in_flight.append(task.remote(blocks[begin], begin, blocks[other_begin], other_begin, max_distance))
    while in_flight:
        in_flight = _unite_finished(ray, in_flight, parent)
    hamming.point_to_roots(parent)
    return parent


def _links(block: np.ndarray, begin: int, other: np.ndarray, other_begin: int, max_distance: int) -> np.ndarray:
    return links_of_blocks(block, begin, other, other_begin, max_distance, num_threads=1)


def _unite_finished(ray: Any, in_flight: list[Any], parent: np.ndarray) -> list[Any]:
    """Wait for a task to end and add its links; returns what is still in flight."""
    finished, waiting = ray.wait(in_flight, num_returns=1)
    for links in ray.get(finished):
        hamming.unite_all(parent, links)
    return waiting
