"""What `dedup.py` has xmodal do, in a fresh process.

python benchmarks/dedup_ours.py '{"file": ...}'
"""

import json
import os
import sys
import time

import numpy as np
from own_memory import peak_mib

from xmodal.curation.near_duplicates import near_groups


def main() -> None:
    """Group the hashes of a file; print how long that took, the most memory held, and the file of the groups."""
    plan = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: plan["threads"]])
    packed = np.load(plan["file"], mmap_mode="r")
    near_groups(packed[:100], plan["distance"])  # compiles, or reads what was compiled
    start = time.perf_counter()
    groups = near_groups(packed, plan["distance"])
    seconds = time.perf_counter() - start
    held = peak_mib()
    np.save(plan["output"], groups)
    print(json.dumps({"seconds": seconds, "peak_mib": held, "groups": plan["output"]}))


if __name__ == "__main__":
    main()
