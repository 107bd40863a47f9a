"""Evaluate a student, on several processes where there are several GPUs.

accelerate launch launch/evaluate.py --student runs/demo/train/student --benchmarks '[configs/benchmarks/emoji.yaml]'
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli

if __name__ == "__main__":
    cli.leave(cli.run_verb(cli.evaluate, sys.argv[1:]))
