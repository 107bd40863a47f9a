"""A rank that does several runs, one after another, in one process.

    python training_program.py FILE

FILE is JSON: for each run its arguments, as `launch/train.py` takes them.
"""

import json
import logging
import sys
from pathlib import Path

from xmodal.config import load_config
from xmodal.training.config import TrainConfig
from xmodal.training.job import joined_ranks
from xmodal.training.train import train_within

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with joined_ranks(timeout=200) as ranks:
        for arguments in json.loads(Path(sys.argv[1]).read_text()):
            train_within(load_config(TrainConfig, arguments, command="", description=""), ranks)
