"""What `dedup.py` has faiss and imagededup do. Runs in their own environment only.

python benchmarks/dedup_peers.py '{"contender": ..., "file": ...}'
"""

import json
import sys
import time
import warnings

import numpy as np
from own_memory import peak_mib


def main() -> None:
    """Find the near ones; print how long that took, the most memory held, and the file of the pairs."""
    plan = json.loads(sys.argv[1])
    packed = np.load(plan["file"], mmap_mode="r")[: plan.get("hashes")]
    seconds, pairs = by_faiss(packed, plan) if plan["contender"].startswith("faiss") else by_imagededup(packed, plan)
    held = peak_mib()
    np.save(plan["output"], np.array(sorted({(one, other) for one, other in pairs if one < other})).reshape(-1, 2))
    print("\n" + json.dumps({"seconds": seconds, "peak_mib": held, "pairs": plan["output"]}))


def by_faiss(packed: np.ndarray, plan: dict) -> tuple[float, list[tuple[int, int]]]:
    """The first queries against all hashes, by comparing with each."""
    import faiss

    faiss.omp_set_num_threads(plan["threads"])
    start = time.perf_counter()
    index = faiss.IndexBinaryFlat(8 * packed.shape[1])
    index.add(np.array(packed))
    # What it finds is strictly nearer than its radius.
    limits, _, places = index.range_search(np.array(packed[: plan.get("queries")]), plan["distance"] + 1)
    seconds = time.perf_counter() - start
    queries = np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64))
    return seconds, list(zip(queries.tolist(), places.tolist(), strict=True))


def by_imagededup(packed: np.ndarray, plan: dict) -> tuple[float, list[tuple[int, int]]]:
    """All hashes among one another."""
    from imagededup.methods import PHash

    warnings.simplefilter("ignore")
    tree = plan["contender"].endswith("bktree")
    # It lines up the digits of hashes of more than 64 bits from the first that is not 0: a 1 before all makes it right.
    hashes = ["1" + bytes(row).hex() if tree else bytes(row[:8]).hex() for row in packed]
    names = {str(place): value for place, value in enumerate(hashes)}
    start = time.perf_counter()
    found = PHash(verbose=False).find_duplicates(
        encoding_map=names,
        max_distance_threshold=plan["distance"] if tree else plan["distance"] // 4,
        search_method="bktree" if tree else "brute_force_cython",
        num_dist_workers=plan["threads"],
    )
    seconds = time.perf_counter() - start
    return seconds, [(int(one), int(other)) for one, others in found.items() for other in others]


if __name__ == "__main__":
    main()
