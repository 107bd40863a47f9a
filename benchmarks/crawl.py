"""Crawling pictures into WebDatasets: ours against img2dataset, from one local web server to local disk.

    python benchmarks/crawl.py --quick --json crawl.json

Four cases: `originals` (bytes kept, no checks, no hashes), `resized` (to 512 pixels on the longer side), `checked`
(ours decodes every picture to its end and stores sha256 and PDQ; img2dataset does what it does with originals), and
`faulty` (originals, where 1 % of the URLs never answer and 5 % answer 503 the first time). Both have two processes, the
same time-out and the same number of tries. `img2dataset, undecoded` is img2dataset with `disable_all_reencoding`, which
looks at nothing of what it stores; in the cases above it decodes every picture.

In the case `faulty`, where what never answers holds up a thread each, img2dataset has its own default of 256 threads
instead of `--threads`, and both have three times as many URLs: of a short run, the last time-outs are most.

Rates are from the first shard's begin to the last one's end, without the start of Python, for which each has its own
count. Seconds of the processor are those of all processes of a contender, less those of a run over a few pictures;
memory is the largest sum of what its processes hold. The server has a process of its own, that both use alike.

img2dataset runs in a virtual environment of its own, which is made the first time. Without it (`--contenders xmodal`)
none is made.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import loader_pictures
import numpy as np
import psutil
import report_file
from peers_environment import FOLDER, environment_of_peers, versions_of_peers
from PIL import Image

HERE = Path(__file__).resolve().parent
OURS, PEER, UNDECODED = "xmodal", "img2dataset", "img2dataset, undecoded"
MORE = {"originals": [UNDECODED]}
"""Of img2dataset, for a case."""
PINS = {"img2dataset": "1.47.0"}
CASES = ("originals", "resized", "checked", "faulty")
SIZES = [(320, 240)] * 5 + [(600, 450)] * 10 + [(1024, 768)] * 4 + [(1600, 1200)]
"""Of the pictures that are served, again and again."""
STALLED_OF, ONCE_503_OF = 100, 20
"""One in so many."""
FAULTY_URLS, FAULTY_THREADS = 3, 256
"""In the case `faulty`: times as many URLs, and the threads of each of img2dataset's processes."""
MAX_SIDE = 512
RATE, CPU, MEMORY = "images_per_second", "cpu_seconds_per_1000_images", "peak_mib"
NUM_PROCESSES = 2
NUM_OF_EACH = 3
NUM_FEW = 40
"""URLs of a run that is made to know what the start takes."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all rounds."""

    folder: Path
    base_url: str
    num_urls: int
    timeout: int
    threads: int
    peers: Path | None


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    arguments = parse_arguments()
    peers = None
    if PEER in arguments.contenders:
        peers = environment_of_peers(Path(arguments.peers_environment), PINS)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="crawl-", dir=arguments.folder) as folder:
        mean_bytes = make_pictures(Path(folder, "pictures"))
        with serving(Path(folder, "pictures")) as base_url:
            setting = Setting(
                folder=Path(folder),
                base_url=base_url,
                num_urls=arguments.num_urls or (4000 if arguments.quick else 20_000),
                timeout=2 if arguments.quick else 10,
                threads=arguments.threads,
                peers=peers,
            )
            rounds = arguments.rounds or (5 if arguments.quick else 7)
            for case in arguments.cases:
                run_case(case, setting, arguments.contenders, rounds, results)
    work = (
        f"{setting.num_urls} URLs a round and case, {len(SIZES) * NUM_OF_EACH} JPEGs that differ, of "
        f"{mean_bytes / 1000:.0f} kB in the mean and 320x240 to 1600x1200 pixels, {NUM_PROCESSES} processes, "
        f"img2dataset with {setting.threads} threads each, time-out {setting.timeout} s; in the case faulty "
        f"{FAULTY_URLS} times as many URLs, two tries, and {FAULTY_THREADS} threads"
    )
    packages = ("aiohttp", "numpy", "pillow", "xmodal")
    document = report_file.report("crawl", work, packages, results, ratios(results))
    if peers:
        versions = versions_of_peers(peers, (*PINS, "numpy", "opencv-python-headless", "webdataset"))
        document["versions"] |= {f"peers: {name}": version for name, version in versions.items()}
    report_file.write(document, arguments.json)


def parse_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 7, of a fifth of the pictures")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", default=".", help="where to write: on the disk that is to be used")
    parser.add_argument("--contenders", nargs="+", choices=(OURS, PEER), default=[OURS, PEER])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--num-urls", type=int, help="of a round")
    parser.add_argument("--rounds", type=int, help="instead of 7 (or 5)")
    parser.add_argument("--threads", type=int, default=32, help="of each of img2dataset's processes")
    parser.add_argument(
        "--peers-environment", default=str(FOLDER / "crawl"), help="folder of img2dataset's environment"
    )
    return parser.parse_args()


def make_pictures(folder: Path) -> float:
    """Write the pictures to be served; returns how many bytes one has in the mean."""
    folder.mkdir()
    for number, (width, height) in enumerate(SIZES * NUM_OF_EACH):
        generator = np.random.default_rng(number)
        photo = loader_pictures.photo(width, height, generator)
        (folder / f"{number:03d}.jpg").write_bytes(loader_pictures.jpeg(photo, int(generator.integers(85, 91))))
    return statistics.mean(path.stat().st_size for path in folder.iterdir())


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The web server, for as long as the block lasts."""
    command = [sys.executable, str(HERE / "crawl_server.py"), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()


def run_case(
    case: str, setting: Setting, contenders: list[str], rounds: int, results: dict[str, dict[str, list[float]]]
) -> None:
    """Add the figures of a case; the contenders take turns, and another one begins each round."""
    names = [*contenders, *(MORE.get(case, []) if PEER in contenders else [])]
    if case == "faulty":
        setting = dataclasses.replace(setting, num_urls=FAULTY_URLS * setting.num_urls)
    few = dataclasses.replace(setting, num_urls=NUM_FEW)
    cpu_of_start = {name: run_contender(name, case, few, "start").cpu_seconds for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            run = run_contender(name, case, setting, f"round{number}")
            figures = results.setdefault(name, {})
            for figure, value in {
                RATE: run.num_pictures / run.seconds,
                CPU: 1000 * (run.cpu_seconds - cpu_of_start[name]) / run.num_pictures,
                MEMORY: run.peak_bytes / 2**20,
            }.items():
                figures.setdefault(f"{figure}_{case}", []).append(round(value, 3))
        latest = ", ".join(f"{name} {results[name][f'{RATE}_{case}'][-1]:.0f}" for name in names)
        print(f"{case}, round {number + 1} of {rounds}, images/s: {latest}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a contender has done, and what it took."""

    num_pictures: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run_contender(name: str, case: str, setting: Setting, label: str) -> Run:
    """A contender's run in fresh processes. Raises SystemExit if it fails, or did not bring all pictures."""
    folder = setting.folder / "run"
    folder.mkdir()
    urls = [
        url_of(number, case, f"{label}-{name.replace(',', '').replace(' ', '-')}", setting)
        for number in range(setting.num_urls)
    ]
    url_files = []
    for part, start in enumerate(range(0, len(urls), len(urls) // NUM_PROCESSES)):
        url_files.append(folder / f"urls-{part}.txt")
        url_files[-1].write_text("\n".join(urls[start : start + len(urls) // NUM_PROCESSES]))
    plan = {
        "folder": str(folder),
        "output": str(folder / "out"),
        "url_files": [str(file) for file in url_files],
        "case": case,
        "timeout": setting.timeout,
        "tries": 2 if case == "faulty" else 1,
        "threads": FAULTY_THREADS if case == "faulty" else setting.threads,
        "undecoded": name == UNDECODED,
    }
    python, script = (sys.executable, "crawl_ours.py") if name == OURS else (setting.peers, "crawl_peers.py")
    cpu_before = cpu_seconds_of_children()
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            [str(python), str(HERE / script), json.dumps(plan)],
            stdout=log,
            stderr=subprocess.STDOUT,
            # One of img2dataset's packages asks the internet for a newer version of itself.
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
        peak_bytes = watch_memory(process)
        log.seek(0)
        output = log.read()
    if process.returncode:
        raise SystemExit(f"{name}, {case}:\n{output[-4000:]}")
    cpu_seconds = cpu_seconds_of_children() - cpu_before
    num_pictures = check_work(name, case, setting, read_pictures(folder / "out"))
    shutil.rmtree(folder)
    return Run(
        num_pictures=num_pictures,
        seconds=json.loads(output.rstrip().rpartition("\n")[2])["seconds"],
        cpu_seconds=cpu_seconds,
        peak_bytes=peak_bytes,
    )


def url_of(number: int, case: str, label: str, setting: Setting) -> str:
    """The URL of a picture; what is answered by 503 once is another one for each run."""
    kind = "plain"
    if case == "faulty":
        kind = "stalled" if is_stalled(number) else "once503" if number % ONCE_503_OF == 7 else kind
    return f"{setting.base_url}/{kind}/{label}/{number}"


def is_stalled(number: int) -> bool:
    """Whether a URL of the case faulty is never answered."""
    return number % STALLED_OF == STALLED_OF // 2


def cpu_seconds_of_children() -> float:
    """What all processes that were started from here, and have ended, have used of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watch_memory(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process to end; the most bytes that it and its descendants held at a time."""
    peak = 0
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        held = 0
        with contextlib.suppress(psutil.Error):
            for one in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    held += one.memory_info().rss
        peak = max(peak, held)
        time.sleep(0.1)
    return peak


def read_pictures(folder: Path) -> Iterator[bytes]:
    """The encoded pictures of all tars."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg")):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield content.read()


def check_work(name: str, case: str, setting: Setting, pictures: Iterator[bytes]) -> int:
    """All pictures are there but those that never come: with equal bytes, or of the right size. Returns how many.

    Raises SystemExit.
    """
    served = [path.read_bytes() for path in sorted((setting.folder / "pictures").iterdir())]
    expected = Counter(
        number % len(served) for number in range(setting.num_urls) if case != "faulty" or not is_stalled(number)
    )
    if case == "resized":
        sizes = Counter(max(Image.open(io.BytesIO(picture)).size) for picture in pictures)
        num_pictures = sizes.total()
        if max(sizes) > MAX_SIDE or sizes[MAX_SIDE] < num_pictures / 2:
            raise SystemExit(f"{name}, {case}: longest sides {sizes}")
    else:
        digests = Counter(hashlib.sha256(picture).digest() for picture in pictures)
        num_pictures = digests.total()
        wanted = Counter({hashlib.sha256(served[number]).digest(): count for number, count in expected.items()})
        if set(digests) - set(wanted):
            raise SystemExit(f"{name}, {case}: other bytes than were served")
        if digests != wanted:
            raise SystemExit(f"{name}, {case}: {num_pictures} pictures instead of {expected.total()}, or other ones")
    if num_pictures != expected.total():
        raise SystemExit(f"{name}, {case}: {num_pictures} pictures instead of {expected.total()}")
    return num_pictures


def ratios(results: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Ours to the others: the median of the ratios within a round."""
    if OURS not in results:
        return {}
    return {
        f"{OURS} / {name}: {figure}": round(
            statistics.median(a / b for a, b in zip(results[OURS][figure], values, strict=True)), 3
        )
        for name, figures in results.items()
        if name != OURS
        for figure, values in figures.items()
    }


if __name__ == "__main__":
    main()
