"""Memory of a label run over few posts and over many: it must not grow with the input.

    python benchmarks/label_memory.py --json memory.json

`xmodal label` runs on a Ray of its own, two tasks at a time, with pictures of a local web server and the lexicon for a
teacher. Of its driver, its tasks and its actors, the script tells the most that one process of the kind held at a time
(resident memory, libraries included). The ratios are those of many posts to few.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
import report_file
from crawl import make_pictures, serving

KINDS = {"ray::_run_job": "task", "ray::_TeacherActor": "teacher", "ray::_GateActor": "gate"}
"""How the name of a process begins → what it is; an actor that is called has its method's name behind it. The driver is
the one that was started."""
POSTS_PER_UNIT = 100


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--few", type=int, default=4_000, help="posts")
    parser.add_argument("--many", type=int, default=80_000, help="posts")
    parser.add_argument("--quick", action="store_true", help="1 round instead of 3")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {"few": {}, "many": {}}
    with tempfile.TemporaryDirectory(prefix="label-memory-") as folder:
        mean_bytes = make_pictures(Path(folder, "pictures"))
        with serving(Path(folder, "pictures")) as base_url:
            for number in range(1 if arguments.quick else 3):
                for name, num_posts in (("few", arguments.few), ("many", arguments.many)):
                    peaks = run(Path(folder), base_url, num_posts, f"{name}-{number}")
                    for kind, peak in peaks.items():
                        results[name].setdefault(f"{kind}_peak_mib", []).append(round(peak / 2**20, 1))
                    print(f"round {number + 1}, {num_posts} posts, MiB: {results[name]}", flush=True)
    work = (
        f"{arguments.few} and {arguments.many} posts of one picture, {mean_bytes / 1000:.0f} kB in the mean, in units "
        f"of {POSTS_PER_UNIT}, two tasks at a time"
    )
    ratios = {
        f"many / few: {figure}": round(statistics.median(values) / statistics.median(results["few"][figure]), 3)
        for figure, values in results["many"].items()
    }
    report_file.write(report_file.report("label_memory", work, ("ray", "xmodal"), results, ratios), arguments.json)


def run(folder: Path, base_url: str, num_posts: int, name: str) -> dict[str, int]:
    """Label so many posts; returns the peak of each kind of process, in bytes. Raises SystemExit if it fails."""
    posts = folder / f"{name}.jsonl"
    with open(posts, "w") as file:
        for number in range(num_posts):
            file.write(
                json.dumps({"id": str(number), "text": "a fine day", "media": [f"plain/{name}/{number}"]}) + "\n"
            )
    command = [
        *(sys.executable, "-m", "xmodal.cli", "label", f"--posts={posts}", f"--dataset={folder / name}"),
        *(f"--base_url={base_url}", f"--posts_per_unit={POSTS_PER_UNIT}", '--fetch.allow_networks=["127.0.0.0/8"]'),
        *("--politeness.requests_per_second=0", "--politeness.max_concurrent=64"),
        *("--max_units_in_flight=8", "--pictures.check=header", "--pictures.hashes=false"),
    ]
    with open(folder / f"{name}.log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
        peaks = watch(process)
        log.seek(0)
        if process.returncode:
            raise SystemExit(log.read())
    return peaks


def watch(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Wait for the driver to end; the most bytes that one process of each kind held."""
    peaks: dict[str, int] = defaultdict(int)
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peaks["driver"] = max(peaks["driver"], driver.memory_info().rss)
            for one in driver.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    name = "".join(one.cmdline()[:1])
                    for beginning, kind in KINDS.items():
                        if name.startswith(beginning):
                            peaks[kind] = max(peaks[kind], one.memory_info().rss)
        time.sleep(0.2)
    return dict(peaks)


if __name__ == "__main__":
    main()
