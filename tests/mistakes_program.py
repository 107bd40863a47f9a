"""A rank that begins anew after a mistake of one of them.

    python mistakes_program.py

Says what it was told, and whether it takes the mistake of before for one of the second time.
"""

import sys
import time

import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.job import joined_ranks
from xmodal.training.mistakes import another_has_failed, by_all


def work() -> bool:
    """The second rank's fails, and the other sees it."""
    if dist.get_rank():
        raise UserError("this is wrong", "mend it")
    while not another_has_failed():
        time.sleep(0.01)
    return True


if __name__ == "__main__":
    with joined_ranks(100):
        for _ in range(2):
            try:
                by_all(work)
            except UserError as error:
                sys.stdout.write(f"{error.what}\n")
            sys.stdout.write(f"{by_all(another_has_failed)}\n")
