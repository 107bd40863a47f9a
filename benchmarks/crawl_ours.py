"""What `crawl.py` has xmodal do: units of posts, each fetched and written by a process, as Ray's tasks do it.

python benchmarks/crawl_ours.py '{"folder": ...}'
"""

import json
import multiprocessing
import sys
import time
from typing import Any

PICTURES: dict[str, dict[str, Any]] = {
    "originals": {"check": "header", "hashes": False, "max_side": 0},
    "resized": {"check": "header", "hashes": False, "max_side": 512, "quality": 92},
    "checked": {"max_side": 0},
    "faulty": {"check": "header", "hashes": False, "max_side": 0},
}


def main() -> None:
    """Run the units, as many at a time as there are URL files, and print when the first began and the last ended."""
    plan = json.loads(sys.argv[1])
    units = [(plan, number) for number in range(len(plan["url_files"]))]
    # Spawned, as workers of a cluster are: nothing is shared that only one of them would have paid for.
    with multiprocessing.get_context("spawn").Pool(len(units)) as pool:
        spans = pool.starmap(run_unit, units, chunksize=1)
        pool.close()
        pool.join()
    print(json.dumps({"seconds": max(end for _, end in spans) - min(start for start, _ in spans)}))


def run_unit(plan: dict[str, Any], number: int) -> tuple[float, float]:
    """Fetch the pictures of a URL file and commit them as a shard."""
    from xmodal.crawl.config import FetchConfig
    from xmodal.crawl.pictures import PictureConfig
    from xmodal.crawl.politeness import PolitenessConfig
    from xmodal.labelling.config import LabelConfig
    from xmodal.labelling.task import UnitJob, label_unit
    from xmodal.posts.post import parse_post
    from xmodal.posts.readers import PostRecord

    with open(plan["url_files"][number]) as file:
        urls = file.read().splitlines()
    config = LabelConfig(
        posts="posts.jsonl",
        dataset=plan["output"],
        fetch=FetchConfig(
            allow_networks=["127.0.0.0/8"],
            max_tries=plan["tries"],
            connect_seconds=plan["timeout"],
            idle_seconds=plan["timeout"],
            total_seconds=plan["timeout"],
        ),
        pictures=PictureConfig(**PICTURES[plan["case"]]),
        politeness=PolitenessConfig(requests_per_second=0, max_concurrent=0),  # img2dataset has no limits a host
    )
    start = time.time()
    records = [
        PostRecord(line=line, post=parse_post({"id": f"{line:08d}", "text": "fine", "media": [url]}))
        for line, url in enumerate(urls)
    ]
    job = UnitJob(number=number, records=records)
    teacher = {"name": "vader", "revision": "3.3.2"}
    label_unit(
        config,
        plan["output"],
        job,
        label_posts=lambda posts: [(0.1, 0.2, 0.7)] * len(posts),
        teacher=teacher,
        keeper=None,
        before_commit=lambda: None,
    )
    return start, time.time()


if __name__ == "__main__":
    main()
