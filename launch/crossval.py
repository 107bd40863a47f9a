"""Fine-tune a student on a benchmark by cross-validation; under all launchers, as launch/train.py.

deepspeed --num_accelerators 2 launch/crossval.py -m ViT_L16 -b 5agree
torchrun --nproc-per-node 2 launch/crossval.py -m ViT_L16 -b 5agree
python launch/crossval.py -m ViT_L16 -b 5agree --train.optimizer.lr 3e-5
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli
from xmodal.cli.launched import without_local_rank

if __name__ == "__main__":
    cli.leave(cli.run_verb(cli.crossval, without_local_rank(sys.argv[1:])))
