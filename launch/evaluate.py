"""Evaluate students, on several processes where there are several GPUs.

accelerate launch launch/evaluate.py -m runs/demo/train/student -b emoji
accelerate launch --cpu --num_processes 2 launch/evaluate.py -m runs/demo/train/student -b emoji
srun --ntasks=8 python launch/evaluate.py -m runs/demo/train/student -b …
"""

import os
import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli


def evaluate(arguments: list[str]) -> None:
    """`xmodal evaluate`; the tasks of a step of srun's, of which Accelerate does not know, are processes of one job."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        from xmodal.training.ranks import rank_variables

        os.environ.update(rank_variables(os.environ))
    cli.evaluate(arguments)


if __name__ == "__main__":
    cli.leave(cli.run_verb(evaluate, sys.argv[1:]))
