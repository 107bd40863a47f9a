"""A rank in collectives that would wait for an hour for one that is lost, as NCCL's do for ever.

    python heartbeat_program.py TIMEOUT FOLDER [SECONDS]

Writes a line into FOLDER/RANK for each that it has done. With SECONDS, the first rank instead does so many of them by
itself, once the others have parted.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from xmodal import cli
from xmodal.training.job import joined_ranks
from xmodal.training.ranks import limit_waiting


def work(arguments: list[str]) -> None:
    """Until it is ended, or for so many seconds."""
    timeout, folder, *seconds = arguments
    with joined_ranks(float(timeout)) as ranks, open(Path(folder, str(ranks.rank)), "w", buffering=1) as file:
        limit_waiting(3600)
        if seconds:
            dist.barrier()
            time.sleep(float(seconds[0]) * ranks.is_first)
            return
        while True:
            dist.all_reduce(torch.ones(1))
            file.write("done\n")
            time.sleep(0.05)


if __name__ == "__main__":
    cli.leave(cli.run_verb(work, sys.argv[1:]))
