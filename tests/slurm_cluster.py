"""A real SLURM on this machine: munge, a controller and two node daemons, all private, all ended by pid."""

import datetime
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from launchers import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")


def missing() -> str | None:
    """Why there can be no SLURM here, if so."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


@dataclass(frozen=True)
class Slurm:
    """A running cluster of two nodes, n1 and n2; jobs in the partition `urgent` preempt all others."""

    environment: dict[str, str]
    start_daemon: Callable[..., subprocess.Popen]
    nodes: dict[str, subprocess.Popen]
    """The daemons of the nodes."""

    def submit(self, *arguments: str, folder: Path) -> str:
        """Submit a batch script and return the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], env=self.environment, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def signal(self, job: str, name: str) -> None:
        """Signal the batch shell of a job."""
        subprocess.run(["scancel", "--batch", f"--signal={name}", job], env=self.environment, check=True)

    def wait_until_it_runs(self, job: str, seconds: float = 60) -> dict[str, str]:
        """Wait until a job has started; returns what `scontrol show job` says of it."""
        deadline = time.monotonic() + seconds
        while (fields := self.fields(job))["JobState"] != "RUNNING":
            assert time.monotonic() < deadline, fields
            time.sleep(0.2)
        return fields

    def restart(self, job: str, times: int, seconds: float = 60) -> None:
        """Wait until a job was requeued so many times, and have it start at once: SLURM makes it wait two minutes."""
        deadline = time.monotonic() + seconds
        update = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        while (fields := self.fields(job))["Restarts"] != str(times) or fields["JobState"] != "RUNNING":
            assert time.monotonic() < deadline, fields
            # A node refuses what a job of this number was allowed in the second in which it was taken off, or before.
            requeued = datetime.datetime.fromisoformat(fields["SubmitTime"]).astimezone()
            is_late_enough = (datetime.datetime.now().astimezone() - requeued).total_seconds() >= 2
            if fields["JobState"] == "PENDING" and is_late_enough:
                # Again and again: the job gets its time to wait some time after its new state.
                subprocess.run(update, env=self.environment, capture_output=True)
            time.sleep(0.2)

    def kill_node(self, name: str) -> None:
        """End its daemon and all that runs of jobs on it at once, as a power cut would."""
        self.nodes[name].kill()
        self.nodes[name].wait()
        ranks = [process for process in psutil.process_iter() if _is_of_job(process, name, self.environment)]
        # Theirs first: they would tell of the others' ends.
        for process in {parent for rank in ranks for parent in rank.parents() if parent.name() == "slurmstepd"}:
            process.kill()
        for process in ranks:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def bring_back(self, name: str) -> None:
        """Start a node's daemon again."""
        self.nodes[name] = self.start_daemon(name, "slurmd", "-D", "-N", name)

    def wait_for_node(self, name: str, state: str, seconds: float = 120) -> None:
        """Wait until SLURM takes a node to be in this state, such as IDLE or DOWN."""
        deadline = time.monotonic() + seconds
        command = ["scontrol", "--oneliner", "show", "node", name]
        while True:
            shown = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout
            if state in re.findall(r"State=(\w+)", shown):
                return
            assert time.monotonic() < deadline, shown
            time.sleep(0.3)

    def fields(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        shown = subprocess.run(
            ["scontrol", "show", "job", job], env=self.environment, capture_output=True, text=True, check=True
        )
        return dict(word.partition("=")[::2] for word in shown.stdout.split())

    def wait(self, job: str, seconds: float = 180) -> dict[str, str]:
        """Wait until a job has ended; returns what `scontrol show job` says of it."""
        deadline = time.monotonic() + seconds
        while True:
            fields = self.fields(job)
            if fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return fields
            assert time.monotonic() < deadline, fields
            time.sleep(0.3)


@contextmanager
def start_slurm(folder: Path) -> Iterator[Slurm]:
    """Start it with all of its files in `folder`, which must not be long: sockets lie there."""
    controller, *nodes = free_port(), free_port(), free_port()
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(_configuration(folder, controller, nodes))
    environment = os.environ | {"PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        if [name for _, name in socket.if_nameindex()] == ["lo"]:
            stack.enter_context(_address_that_counts())

        def start(name: str, *command: str) -> subprocess.Popen:
            log = stack.enter_context(open(folder / f"{name}.out", "a"))
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            stack.callback(_end, process)
            return process

        start(
            "munged", "munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
            "--num-threads=2",
        )  # fmt: skip
        _wait_for((folder / "munge.sock").exists, folder)
        start("slurmctld", "slurmctld", "-D", "-c")
        slurm = Slurm(environment, start, {name: start(name, "slurmd", "-D", "-N", name) for name in ("n1", "n2")})
        stack.callback(_cancel_all, slurm)
        _wait_for(lambda: _idle_nodes(slurm) == 2, folder)
        yield slurm


@contextmanager
def _address_that_counts() -> Iterator[None]:
    """Where loopback is all there is, the resolver gives SLURM no address to listen on: it takes 127.0.0.1 for none.

    192.0.2.0/24 is reserved for documentation (RFC 5737) and leads nowhere.
    """
    subprocess.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "delete", "192.0.2.1/32", "dev", "lo"], check=True)


def _path() -> str:
    # The daemons lie where an ordinary user's path does not lead.
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"


def _configuration(folder: Path, controller: int, nodes: list[int]) -> str:
    lines = [
        "ClusterName=test", "SlurmctldHost=localhost(127.0.0.1)", "SlurmUser=root", "SlurmdUser=root",
        "AuthType=auth/munge", f"AuthInfo=socket={folder}/munge.sock", "CredType=cred/munge",
        f"SlurmctldPort={controller}", f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd.%n.pid",
        f"SlurmdSpoolDir={folder}/%n", f"StateSaveLocation={folder}/state", "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none", "MpiDefault=none", "SwitchType=switch/none",
        "AccountingStorageType=accounting_storage/none", "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0",
        "ReturnToService=2", "SlurmdTimeout=30",
        "SlurmdParameters=config_overrides", "MinJobAge=600", "CompleteWait=0", "KillWait=5",
        "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", "JobRequeue=1",
    ]  # fmt: skip
    for name, port in zip(("n1", "n2"), nodes, strict=True):
        lines.append(f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000")
    lines.append("PartitionName=all Nodes=n[1-2] Default=YES MaxTime=60 PriorityTier=1 GraceTime=30")
    lines.append("PartitionName=urgent Nodes=n[1-2] MaxTime=60 PriorityTier=10 PreemptMode=OFF")
    return "\n".join(lines) + "\n"


def _is_of_job(process: psutil.Process, node: str, environment: dict[str, str]) -> bool:
    with suppress(psutil.Error):
        of_process = process.environ()
        return (of_process.get("SLURMD_NODENAME"), of_process.get("SLURM_CONF")) == (node, environment["SLURM_CONF"])
    return False


def _idle_nodes(slurm: Slurm) -> int:
    shown = subprocess.run(["scontrol", "show", "nodes"], env=slurm.environment, capture_output=True, text=True)
    return shown.stdout.count("State=IDLE ")


def _wait_for(condition: Callable[[], bool], folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(path.read_text() for path in folder.glob("*.out"))
        assert time.monotonic() < deadline, logs[-4000:]
        time.sleep(0.1)


def _cancel_all(slurm: Slurm) -> None:
    subprocess.run(["scancel", "--user=root"], env=slurm.environment, capture_output=True)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
