"""Ranks that wait in a collective for one that is lost: they are told by something else."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from launchers import free_port, start_program, wait_for_ranks

HOST = socket.gethostname()
TIMEOUT = 8.0
"""Not below what a thread of a busy machine may have to wait for its turn."""


@contextmanager
def ranks_at_work(folder: Path, *seconds: str, late: float = 0.0) -> Iterator[list[subprocess.Popen[str]]]:
    """Three of them; the others start `late`, in seconds after the first waits for them."""
    port = free_port()
    job = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as the launched programs have it: no word of names without an address
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(3):
            arguments = [str(TIMEOUT), str(folder), *seconds]
            ranks.append(start_program("tests/heartbeat_program.py", arguments, RANK=str(rank), LOCAL_RANK="0", **job))
            if late and rank == 0:
                wait_until_it_listens(ranks[0], port)
                time.sleep(late)
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 200
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def num_done(folder: Path) -> list[int]:
    """Of each rank."""
    files = [folder / str(rank) for rank in range(3)]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def wait_until_more_is_done(folder: Path, ranks: list[subprocess.Popen[str]]) -> None:
    before, deadline = num_done(folder), time.monotonic() + 200
    while not all(after > one for after, one in zip(num_done(folder), before, strict=True)):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in ranks)
        time.sleep(0.05)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_rank_that_is_silent_is_named_by_all_others_though_their_collective_goes_on_waiting(tmp_path, lost):
    with ranks_at_work(tmp_path) as ranks:
        wait_until_more_is_done(tmp_path, ranks)
        os.kill(ranks[lost].pid, signal.SIGSTOP)
        codes, outputs = wait_for_ranks([process for rank, process in enumerate(ranks) if rank != lost])
    assert codes == [2, 2], outputs
    for rank, output in zip({0, 1, 2} - {lost}, outputs, strict=True):
        said = f"xmodal: rank {rank}: another rank has ended or does not answer, so this one cannot go on: "
        assert output == (
            f"{said}rank {lost} on {HOST}\n"
            "        see what the other rank says; started again, the run goes on from its last checkpoint\n"
        )


def test_a_job_that_was_suspended_for_longer_goes_on(tmp_path):
    with ranks_at_work(tmp_path) as ranks:
        wait_until_more_is_done(tmp_path, ranks)
        for process in ranks:
            os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5 * TIMEOUT)
        for process in ranks:
            os.kill(process.pid, signal.SIGCONT)
        # What they count anew begins with what they missed.
        time.sleep(TIMEOUT / 4)
        wait_until_more_is_done(tmp_path, ranks)


def test_ranks_that_have_parted_are_not_missed_by_one_that_works_on(tmp_path):
    with ranks_at_work(tmp_path, str(1.5 * TIMEOUT)) as ranks:
        codes, outputs = wait_for_ranks(ranks)
    assert (codes, outputs) == ([0, 0, 0], ["", "", ""])


def test_ranks_that_start_later_than_ranks_wait_for_each_other_meet(tmp_path):
    with ranks_at_work(tmp_path, "0", late=1.5 * TIMEOUT) as ranks:
        codes, outputs = wait_for_ranks(ranks)
    assert (codes, outputs) == ([0, 0, 0], ["", "", ""])
