"""A stream is killed in mid-epoch and goes on with another number of ranks: from disk, and from S3 with faults."""

import itertools
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from fault_proxy import Fault, Plan, proxying
from launchers import BIN, ROOT, environment, free_port
from s3_servers import BUCKET, seaweedfs
from s3_servers import environment as s3_environment
from stream_program import CONFIG, describe, open_stream
from training_view import make_view

from shards.cache import ShardCache
from shards.storage import open_storage
from shards.view import open_view, write_view

Steps = dict[int, list[list[str]]]
"""Step → key and hash of pixels of each sample of its global batch, sorted."""

NUM_SAMPLES, SAMPLES_PER_SHARD = 420, 15
LAST_STEP = 34
"""An epoch has 22 steps: in mid-epoch, the next one has begun."""


@pytest.fixture(scope="module")
def view_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    return make_view(folder, num_samples=NUM_SAMPLES, samples_per_shard=SAMPLES_PER_SHARD)


@pytest.fixture(scope="module")
def unbroken(view_folder: Path) -> Steps:
    """All steps of an unbroken run of one rank without workers."""
    view = open_view(str(view_folder))
    keys = view.split("train").rows["key"].to_pylist()
    stream = open_stream(view, CONFIG.__class__(**{**vars(CONFIG), "num_workers": 0}))
    assert stream.steps_per_epoch + 8 < LAST_STEP
    batches = itertools.islice(itertools.chain.from_iterable(iter(stream) for _ in range(3)), LAST_STEP)
    return {number: sorted(describe(keys, batch)) for number, [batch] in enumerate(batches)}


def start(
    url: str, folder: Path, *, ranks: int, workers: int, cache_gib: float, step_seconds: float = 0
) -> subprocess.Popen:
    command = [
        str(BIN / "torchrun"), "--nproc-per-node", str(ranks), f"--master-port={free_port()}",
        "tests/stream_program.py", url, str(folder), str(LAST_STEP), str(workers), str(cache_gib),
        str(step_seconds),
    ]  # fmt: skip
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def run(*arguments: object, **options: object) -> None:
    with start(*arguments, **options) as process:  # type: ignore[arg-type]
        try:
            output, _ = process.communicate(timeout=200)
        finally:
            kill(process)
    assert process.returncode == 0, output


def kill(process: subprocess.Popen) -> None:
    """With all its children: the launcher starts the ranks in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def run_until_killed(url: str, folder: Path, *, cache_gib: float) -> int:
    """Kill 2 ranks of 2 workers each in the middle of an epoch. Returns how many steps were done."""
    with start(url, folder, ranks=2, workers=2, cache_gib=cache_gib, step_seconds=0.1) as process:
        deadline = time.monotonic() + 200
        while steps_done(folder) < 8:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        kill(process)
        process.communicate()
    return steps_done(folder)


def steps_done(folder: Path) -> int:
    try:
        state = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return 0
    return 22 * state["epoch"] + state["step"]


def global_batches(folder: Path, ranks: int, first: int) -> Steps:
    """What all ranks of a run have read from a step on, put together."""
    steps: dict[int, list[list[str]]] = {}
    for rank in range(ranks):
        lines = (folder / f"rank-{rank}-of-{ranks}.jsonl").read_text().splitlines()
        numbers = [json.loads(line)["step"] for line in lines]
        assert numbers == sorted(set(numbers))
        for line in lines:
            step = json.loads(line)
            if step["step"] >= first:
                steps.setdefault(step["step"], []).extend(step["samples"])
    return {number: sorted(samples) for number, samples in steps.items()}


def assert_goes_on(url: str, killed: Path, at: int, unbroken: Steps, *, ranks: int, cache_gib: float) -> None:
    """Resumed from a killed run's state on so many ranks, the rest of the run is that of the unbroken one."""
    folder = killed.parent / f"resumed-{ranks}"
    folder.mkdir(exist_ok=True)  # `watched` may have made it already
    shutil.copy(killed / "state.json", folder)
    run(url, folder, ranks=ranks, workers=1 if ranks == 4 else 2, cache_gib=cache_gib)
    assert global_batches(folder, ranks, 0) == {step: unbroken[step] for step in range(at, LAST_STEP)}


def test_a_killed_stream_goes_on_with_the_same_samples_and_pixels_on_any_number_of_ranks(
    view_folder: Path, unbroken: Steps, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    at = run_until_killed(str(view_folder), killed, cache_gib=0)
    assert 8 <= at < 22
    before = global_batches(killed, 2, 0)
    assert {step: before[step] for step in range(at)} == {step: unbroken[step] for step in range(at)}
    for ranks in (1, 2, 4):
        assert_goes_on(str(view_folder), killed, at, unbroken, ranks=ranks, cache_gib=0)


def one_request_in_ten() -> Plan:
    """Overload, broken bodies, lost answers; of shards a changed bit too, which no checksum of a small object tells."""
    number = itertools.count()
    kinds = itertools.cycle([Fault(status=503), Fault(cut_after=300), Fault(flip_at=700), Fault(cut_after=0)])
    lock = threading.Lock()

    def plan(method: str, path: str, _: int) -> Fault | None:
        with lock:
            if next(number) % 10 != 4:
                return None
            fault = next(kinds)
            return Fault(status=503) if fault.flip_at >= 0 and not path.endswith(".tar") else fault

    return plan


@pytest.fixture(scope="module")
def s3(view_folder: Path) -> Iterator[tuple[str, object]]:
    """The view and its dataset on a server behind a proxy. Yields the view's URL and the proxy."""
    with seaweedfs() as server, proxying(server) as proxy, pytest.MonkeyPatch.context() as variables:
        for name, value in s3_environment(proxy.endpoint).items():
            variables.setenv(name, value)
        view = open_view(str(view_folder))
        dataset = open_storage(f"s3://{BUCKET}/dataset", create=True)
        for name in view.datasets[0].names():
            dataset.replace(name, view.datasets[0].read(name))
        write_view(
            f"s3://{BUCKET}/view", view.table, view.shards, datasets=[dataset.url],
            description={"counts": view.description["counts"]},
        )  # fmt: skip
        yield f"s3://{BUCKET}/view", proxy


@contextmanager
def watched(folder: Path, max_bytes: int) -> Iterator[list[set[str]]]:
    """What lies in a cache, again and again, as long as the block lasts; its bound is checked each time."""
    seen: list[set[str]] = [set()]
    ended = threading.Event()

    def watch() -> int:
        """The most that it ever held."""
        cache, most = ShardCache(folder, max_bytes), 0
        while not ended.wait(0.002):
            most = max(most, cache.num_bytes())
            there = {path.stem for path in folder.glob("*.tar")}
            if there != seen[-1]:
                seen.append(there)
        return most

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            ended.set()
        assert 0 < watching.result() <= max_bytes


def test_the_same_from_s3_with_faults_and_with_a_cache_too_small(s3, unbroken: Steps, tmp_path: Path) -> None:
    url, proxy = s3
    shards: pa.Table = open_view(url).shards
    largest, total = max(shards["bytes"].to_pylist()), sum(shards["bytes"].to_pylist())
    cache_gib = 6 * largest / 2**30
    assert 6 * largest < total / 3
    proxy.plan = one_request_in_ten()
    killed = tmp_path / "killed"
    killed.mkdir()
    with watched(killed / "cache", 6 * largest) as seen:
        at = run_until_killed(url, killed, cache_gib=cache_gib)
    assert any(seen)
    for ranks in (1, 2, 4):
        faults = proxy.num_faults
        with watched(tmp_path / f"resumed-{ranks}" / "cache", 6 * largest) as seen:
            assert_goes_on(url, killed, at, unbroken, ranks=ranks, cache_gib=cache_gib)
        assert proxy.num_faults > faults + 5
        # What was in the cache and is there no more, was evicted.
        assert any(before - after for before, after in itertools.pairwise(seen))
