"""Evaluate students, on several processes where there are several GPUs.

accelerate launch launch/evaluate.py -m runs/demo/train/student -b emoji
accelerate launch --cpu --num_processes 2 launch/evaluate.py -m runs/demo/train/student -b emoji
srun --ntasks=8 python launch/evaluate.py -m runs/demo/train/student -b …
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli
from xmodal.cli.launched import under_srun

if __name__ == "__main__":
    cli.leave(cli.run_verb(under_srun(cli.evaluate), sys.argv[1:]))
