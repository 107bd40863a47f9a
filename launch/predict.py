"""Predict pictures, on several processes where there are several GPUs.

accelerate launch launch/predict.py -m runs/demo/train/student pictures --output predictions.parquet
accelerate launch --cpu --num_processes 2 launch/predict.py -m runs/demo/train/student pictures
srun --ntasks=8 python launch/predict.py -m runs/demo/train/student s3://bucket/pictures
"""

import os
import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli


def predict(arguments: list[str]) -> None:
    """`xmodal predict`; the tasks of a step of srun's, of which Accelerate does not know, are processes of one job."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        from xmodal.training.ranks import rank_variables

        os.environ.update(rank_variables(os.environ))
    cli.predict(arguments)


if __name__ == "__main__":
    cli.leave(cli.run_verb(predict, sys.argv[1:]))
