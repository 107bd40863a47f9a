"""`deepspeed --hostfile` over pdsh and ssh between two hosts, whose link is cut for good while they train."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import ssh_hosts
from launchers import BIN, ROOT, environment, losses, settings, start_ranks, steps, wait_for_ranks, wait_for_step
from network_hosts import Host
from training_view import make_view

from xmodal.training.checkpoint import committed_steps

pytestmark = pytest.mark.skipif(ssh_hosts.missing() is not None, reason=str(ssh_hosts.missing()))

PEER_TIMEOUT = 15
"""Not below what the ranks of a busy machine need to find each other."""
ASSIGNED = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Two of them, one rank on each."""

    first: Host
    second: Host
    folder: Path

    def start(self, arguments: Sequence[str], *options: str) -> subprocess.Popen[str]:
        """On the first host, as a user does there."""
        deepspeed = [str(BIN / "deepspeed"), "--hostfile", str(self.folder / "hostfile"), *options]
        return subprocess.Popen(
            [*self.first.prefix(), "env", f"--chdir={ROOT}", *deepspeed, "launch/train.py", *arguments],
            env=environment()
            | {"DS_ENV_FILE": str(self.folder / "environment"), "PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "hostfile").write_text("host1 slots=1\nhost2 slots=1\n")
    # What the hosts' ranks are to have of this process's environment; PATH is not there.
    passed_on = {name: os.environ[name] for name in ("HOME", "TORCH_EXTENSIONS_DIR") if name in os.environ}
    (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in (ASSIGNED | passed_on).items()))
    with ssh_hosts.reachable_hosts(2, folder) as (first, second):
        yield Hosts(first=first, second=second, folder=folder)


def test_ranks_whose_link_is_cut_say_whom_they_lost_and_started_again_they_end_as_if_unbroken(hosts, tmp_path):
    view = make_view(tmp_path, num_samples=180)
    output, logs = tmp_path / "run", tmp_path / "logs"
    more = (
        *("--epochs=60", "--max_steps=200", "--checkpoint_every_epochs=0", "--checkpoint_every_steps=20"),
        f"--peer_timeout={PEER_TIMEOUT}",
    )
    arguments = settings(view, output, *more)
    broken = hosts.start(arguments, "--enable_each_rank_log", str(logs))
    wait_for_step(output, 30, [broken])
    hosts.second.unplug()
    (code,), (told,) = wait_for_ranks([broken])
    assert code > 0, told
    # The launcher, which is on the first host, does not wait for a host that ssh has lost.
    deadline = time.monotonic() + 180
    while hosts.second.runs("launch/train.py"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    said = ["".join(path.read_text() for path in logs.glob(f"*_rank{rank}.log")) for rank in range(2)]
    for rank, lost in enumerate(("rank 1 on host2", "rank 0 on host1")):
        assert f"rank {rank}: another rank has ended or does not answer, so this one cannot go on: {lost}" in said[rank]
        assert "Traceback" not in said[rank]
    newest = int(committed_steps(output / "checkpoints")[-1][5:])
    hosts.second.plug_in()
    ssh_hosts.wait_until_reachable(hosts.first, "host2")
    (code,), (told,) = wait_for_ranks([hosts.start(arguments)])
    assert code == 0, told
    assert f"resuming at step {newest} of 200" in told
    unbroken = tmp_path / "unbroken"
    codes, outputs = wait_for_ranks(start_ranks([settings(view, unbroken, *more)] * 2))
    assert codes == [0, 0], outputs
    assert [line["samples"] for line in steps(output)] == [line["samples"] for line in steps(unbroken)]
    assert losses(output) == losses(unbroken)
