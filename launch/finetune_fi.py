"""Fine-tune a student on the divisions that come with a benchmark; under all launchers, as launch/train.py.

deepspeed --num_accelerators 2 launch/finetune_fi.py -m ViT_L16
torchrun --nproc-per-node 2 launch/finetune_fi.py -m ViT_L16
python launch/finetune_fi.py -m ViT_L16 --train.optimizer.lr 3e-5
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli
from xmodal.cli.launched import without_local_rank

if __name__ == "__main__":
    cli.leave(cli.run_verb(cli.finetune_fi, without_local_rank(sys.argv[1:])))
