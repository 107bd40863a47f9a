"""From the environment that a launcher leaves to rank, local rank and world size, and the process group."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import torch
from torch import distributed as dist

from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Who this process is among all of the job."""

    rank: int
    local_rank: int
    world_size: int
    num_on_host: int = 1
    """Those that share this one's machine, itself included; known once they have met (`joined_ranks`)."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Of the environment: what torch's process group needs."""


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """`RANK_VARIABLES`, from whichever launcher started this process.

    `deepspeed` and `torchrun` set them; under `srun` they come from the step's variables; a plain `python` is alone.
    Raises UserError where some of them are missing.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise UserError(
                f"environment: RANK and WORLD_SIZE are set, and {', '.join(missing)} not",
                "start by `deepspeed` or `torchrun`, which set all of them, or unset RANK and WORLD_SIZE",
            )
        return {name: environment[name] for name in RANK_VARIABLES if name in environment}
    # SLURM_STEP_NUM_TASKS is there within srun only: a batch script's own shell is no rank.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
            # The same for all ranks of a step, another for every job that may share a node with it.
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + int(environment["SLURM_JOB_ID"]) % 10000),
        }
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


def device_number(local_rank: int, num_visible: int) -> int:
    """The number of a rank's GPU among those that are visible to it. Raises UserError where there is none for it.

    Most launchers show all ranks of a host all of its GPUs; `srun --gpus-per-task=1` shows each its own alone, and to
    each that is number 0.
    """
    if local_rank < num_visible:
        return local_rank
    if num_visible == 1:
        return 0
    raise UserError(
        f"there is no GPU for rank {local_rank} of this host, counted from 0: {num_visible} are visible",
        _ONE_GPU_A_RANK,
    )


_ONE_GPU_A_RANK = "start as many ranks on a host as it has GPUs, or set DS_ACCELERATOR=cpu"


class Place(NamedTuple):
    """Where a rank runs."""

    host: str
    gpu: str
    """An id that no other GPU of the world has; empty on processors."""


def require_own_gpus(places: Sequence[Place]) -> None:
    """Raise UserError where two ranks have the same GPU, which NCCL cannot do; `places` are those of all ranks."""
    owners: dict[str, int] = {}
    for rank, place in enumerate(places):
        if place.gpu and owners.setdefault(place.gpu, rank) != rank:
            raise UserError(
                f"ranks {owners[place.gpu]} and {rank} share a GPU of {place.host}, where"
                f" {sum(other.host == place.host for other in places)} ranks run",
                _ONE_GPU_A_RANK,
            )


def own_place() -> Place:
    """This process's."""
    has_gpu = torch.cuda.is_initialized()
    return Place(socket.gethostname(), str(torch.cuda.get_device_properties().uuid) if has_gpu else "")


def gather_places(ranks: Ranks) -> list[Place]:
    """Those of all ranks; all of them call it. Not by a collective: NCCL's fail where two ranks have one GPU."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"place/{ranks.rank}", json.dumps(own_place()))
    return [Place(*json.loads(place)) for place in store.multi_get([f"place/{i}" for i in range(ranks.world_size)])]


MEETING_SECONDS = 300.0
"""That ranks wait for each other to have started, at least: hosts differ by minutes in how fast they read torch."""


def start_process_group(timeout: float = 600.0) -> Ranks:
    """Join the job's process group, by NCCL where there are GPUs, else by gloo.

    A rank that waits for another one for more than `timeout` seconds raises RuntimeError (gloo) or goes on waiting
    (NCCL; see `Heartbeat`). Raises UserError where they do not meet within that, or `MEETING_SECONDS` if longer.
    """
    # DS_ACCELERATOR=cpu asks for the processors of a machine that has GPUs too.
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not on_gpu:
        # DeepSpeed would look for a GPU where torch was built for one.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.update(rank_variables(os.environ))
    import deepspeed

    ranks = Ranks(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    if on_gpu:
        number = device_number(ranks.local_rank, torch.cuda.device_count())
        torch.cuda.set_device(number)
        os.environ["LOCAL_RANK"] = str(number)  # which DeepSpeed and Accelerate take for the GPU's number
        keep_nccl_from_aborting(os.environ)
        # What a config leaves in float32 is multiplied in TF32, some times as fast: the range is the same, of the 23
        # bits behind the point 10 are used. torch does so for convolutions anyway.
        torch.backends.cuda.matmul.allow_tf32 = True
    # Collectives in shared memory, which only DeepSpeed's inference calls: they would be compiled at the first start,
    # and a rank would wait in them for ever for one that has ended.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=max(timeout, MEETING_SECONDS)),
        )
    except dist.DistError as error:
        meeting_point = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {ranks.rank}: the {ranks.world_size} ranks have not met at {meeting_point}:"
            f" {str(error).splitlines()[0]}",
            "see what the launcher and the other ranks say; that port must be free, and all hosts must reach it",
        ) from error
    limit_waiting(timeout)
    return ranks


def keep_nccl_from_aborting(environment: MutableMapping[str, str]) -> None:
    """Where a rank is lost, torch's two threads that watch over NCCL would end the others by SIGABRT.

    `Heartbeat` would not have told which it is by then; what hangs without a loss is the step's `Watchdog`'s. What a
    user has set stays.
    """
    handling, monitoring = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING"
    # torchrun sets the first to 1 for all that it starts; a user's 1 is not to be told from it.
    if "TORCHELASTIC_RUN_ID" in environment and environment.get(handling) == "1":
        del environment[handling]
    for name in (handling, monitoring):
        environment.setdefault(name, "0")


def limit_waiting(timeout: float) -> None:
    """Have all process groups that there are wait for `timeout` seconds: DeepSpeed's own would for half an hour."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d.set_timeout(timedelta(seconds=timeout), group)


def lost_ranks(ranks: Ranks, patience: float = 5.0) -> list[int]:
    """After a failure between ranks: those that are not heard of within `patience` seconds. Ends the process group.

    Ranks that still run find each other by the store that the first rank keeps; without it, that rank is all that can
    be told.
    """
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()  # whoever waits for this rank learns at once that it will not come
    answers: SimpleQueue[list[int]] = SimpleQueue()
    # Where the link to it is cut, the store keeps whoever asks it for ever, whatever its timeout.
    Thread(target=lambda: answers.put(_not_heard_of(store, ranks, patience)), daemon=True).start()
    try:
        return answers.get(timeout=2 * patience + 0.02 * ranks.world_size)
    except Empty:
        return [0]


def _not_heard_of(store: dist.Store, ranks: Ranks, patience: float) -> list[int]:
    deadline = time.monotonic() + patience
    store.set_timeout(timedelta(seconds=patience))
    try:
        store.set(f"heard/{ranks.rank}", "")
        store.get(f"heard/{ranks.rank}")
    except RuntimeError:
        return [0]
    return [rank for rank in range(ranks.world_size) if rank != ranks.rank and not _is_heard_of(store, rank, deadline)]


def _is_heard_of(store: dist.Store, rank: int, deadline: float) -> bool:
    try:
        store.wait([f"heard/{rank}"], timedelta(seconds=max(0.01, deadline - time.monotonic())))
    except RuntimeError:
        return False
    return True


def _first_host(node_list: str) -> str:
    command = ["scontrol", "show", "hostnames", node_list]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"`{' '.join(command)}` does not name the step's first host: {error}",
            "have scontrol on the PATH of all nodes, or set MASTER_ADDR in the batch script",
        ) from error


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
