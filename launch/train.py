"""Train a student; one program under `deepspeed`, `torchrun`, `srun` and plain `python`.

deepspeed --num_accelerators 2 launch/train.py --config configs/train/demo.yaml
torchrun --nproc-per-node 2 launch/train.py --config configs/train/demo.yaml
python launch/train.py --config configs/train/demo.yaml --optimizer.lr 3e-4
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli
from xmodal.cli.launched import without_local_rank

if __name__ == "__main__":
    cli.leave(cli.run_verb(cli.train, without_local_rank(sys.argv[1:])))
