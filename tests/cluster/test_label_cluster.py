"""Labelling on a Ray cluster of three hosts, one of which dies and one is cut off; its driver is killed.

Ray's own health checks run as they do by default. The hosts are network namespaces.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import label_command
import network_hosts
import pytest
from network_hosts import Host, network_of_hosts
from picture_server import requests_of, serving_pictures
from ray_head import BIN

NUM_POSTS, POSTS_PER_UNIT, CUT_SECONDS = 5_000, 100, 20
NUM_UNITS = NUM_POSTS // POSTS_PER_UNIT
PORT = 6379
RATE = 200
"""Requests a second: it makes a run long enough to be disturbed."""

pytestmark = pytest.mark.skipif(network_hosts.missing() is not None, reason=str(network_hosts.missing()))


@dataclass(kw_only=True)
class Cluster:
    """Three hosts with a Ray node each, and a fourth with the pictures."""

    hosts: list[Host]
    folder: Path
    """Shared by all, as a cluster's file system is."""
    pictures: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen] = field(default_factory=list)

    def command(self, dataset: Path) -> list[str]:
        """What labels, on the first host."""
        return [
            *(*self.hosts[0].prefix(), *label_command.LABEL),
            *(f"--posts={self.folder / 'posts.jsonl'}", f"--dataset={dataset}", f"--base_url={self.pictures}"),
            *(f"--posts_per_unit={POSTS_PER_UNIT}", f"--ray_address={self.hosts[0].address}:{PORT}"),
            *("--fetch.allow_networks=[10.77.0.0/24]", "--fetch.connect_seconds=5", "--fetch.idle_seconds=5"),
            f"--politeness.requests_per_second={RATE}",
            "--teacher.num_actors=3",
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    label_command.write_posts(
        folder / "posts.jsonl",
        [{"id": str(number), "text": f"good {number}", "media": [f"{number}.jpg"]} for number in range(NUM_POSTS)],
    )
    own = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    variables = label_command.environment(own)
    try:
        with network_of_hosts(4, [own]) as hosts, ExitStack() as stack:
            log = folder / "requests.jsonl"
            web = stack.enter_context(
                serving_pictures(log, 8080, host=hosts[3].address, delay=0.02, prefix=hosts[3].prefix())
            )
            running = Cluster(hosts=hosts[:3], folder=folder, pictures=web, environment=variables)
            for number, host in enumerate(running.hosts):
                running.nodes.append(stack.enter_context(ray_node(host, own, variables, folder, is_head=number == 0)))
            wait_for_nodes(running)
            yield running
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def ray_node(
    host: Host, own: Path, variables: dict[str, str], folder: Path, *, is_head: bool
) -> Iterator[subprocess.Popen]:
    head = f"10.77.0.1:{PORT}"
    role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if is_head else [f"--address={head}"]
    command = [str(BIN / "ray"), "start", *role, "--block", "--disable-usage-stats", "--num-cpus=1"]
    command += [f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
    if is_head:
        command.append(f"--temp-dir={own}")
    with open(folder / f"node-{host.address}.log", "w") as log:
        process = subprocess.Popen(
            [*host.prefix(), *command], env=variables, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        if is_head:
            wait_until(lambda: f"--address='{head}'" in (folder / f"node-{host.address}.log").read_text(), 60)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_nodes(cluster: Cluster) -> None:
    def all_there() -> bool:
        done = subprocess.run(
            [*cluster.hosts[0].prefix(), str(BIN / "ray"), "status", f"--address={cluster.hosts[0].address}:{PORT}"],
            env=cluster.environment, capture_output=True, text=True,
        )  # fmt: skip
        return "3.0 CPU" in done.stdout

    wait_until(all_there, 90)


class Watch:
    """Sees each tar as it appears, and whether any is ever written again."""

    def __init__(self, dataset: Path) -> None:
        self.seen: dict[str, int] = {}
        self.changed: list[str] = []
        self._dataset, self._ended = dataset, threading.Event()
        self._thread = threading.Thread(target=self._look_again, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look_again(self) -> None:
        while not self._ended.wait(0.02):
            for path in self._dataset.glob("*.tar"):
                inode = path.stat().st_ino
                if self.seen.setdefault(path.name, inode) != inode:
                    self.changed.append(path.name)


def run_into_trouble(cluster: Cluster, dataset: Path, watch: Watch) -> int:
    """Label until a host died, another was cut off, and the driver was killed. Returns how many units were committed.

    Pictures are fetched from the first host alone at times, whose processor may be shared with other programs.
    """
    log = cluster.folder / "driver.log"

    def wait_for(num_units: int) -> None:
        try:
            wait_until(lambda: len(watch.seen) >= num_units or driver.poll() is not None, 240)
            assert driver.poll() is None
        except AssertionError:
            status = label_command.run([*label_command.LABEL, "--status", str(dataset)], cluster.environment)
            raise AssertionError(f"{status.stdout}{log.read_text()}") from None

    with open(log, "w") as output, subprocess.Popen(
        cluster.command(dataset), env=cluster.environment, cwd=label_command.ROOT, stdout=output, stderr=output,
        start_new_session=True,
    ) as driver:  # fmt: skip
        try:
            wait_for(5)
            # The teachers lie where Ray puts them: the host that dies has some, if the first one has not all.
            dying, cut = sorted(cluster.hosts[1:], key=lambda host: -host.count_processes("ray::_TeacherActor"))
            dying.power_off()
            wait_for(10)
            cut.unplug()
            time.sleep(CUT_SECONDS)
            cut.plug_in()
            wait_for(NUM_UNITS * 6 // 10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
    return len(watch.seen)


def test_a_disturbed_run_makes_the_shards_of_an_undisturbed_one(cluster, capsys):
    undisturbed, disturbed = cluster.folder / "undisturbed", cluster.folder / "disturbed"
    start = time.monotonic()
    done = label_command.run(cluster.command(undisturbed), cluster.environment, seconds=300)
    assert done.returncode == 0, done.stderr
    undisturbed_seconds = time.monotonic() - start
    num_requests = len(requests_of(cluster.folder / "requests.jsonl"))
    assert num_requests == NUM_POSTS

    start = time.monotonic()
    with Watch(disturbed) as watch:
        committed = run_into_trouble(cluster, disturbed, watch)
        assert committed < NUM_UNITS
        again = label_command.run(cluster.command(disturbed), cluster.environment, seconds=300)
    disturbed_seconds = time.monotonic() - start
    assert again.returncode == 0, again.stderr

    assert watch.changed == []
    assert sorted(watch.seen) == [f"{number:06d}.tar" for number in range(NUM_UNITS)]
    assert f"{NUM_UNITS} ({committed}" in again.stdout or f"{NUM_UNITS} ({committed + 1}" in again.stdout
    assert label_command.hashes(disturbed) == label_command.hashes(undisturbed)
    requests = Counter(request["path"] for request in requests_of(cluster.folder / "requests.jsonl")[num_requests:])
    with capsys.disabled():
        print(  # noqa: T201
            f"\n3 hosts, {NUM_POSTS} posts: undisturbed {undisturbed_seconds:.0f} s; a host killed, another cut off "
            f"for {CUT_SECONDS} s, the driver killed and started again: {disturbed_seconds:.0f} s, "
            f"{requests.total() / NUM_POSTS - 1:.1%} of the pictures fetched again"
        )
