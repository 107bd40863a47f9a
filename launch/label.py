"""Label posts as a Ray job.

ray job submit --address http://HEAD:8265 --working-dir . -- python launch/label.py --config configs/label/demo.yaml
"""

import sys
from pathlib import Path

# A launcher runs this file by its path, with its own folder first on the path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xmodal import cli

if __name__ == "__main__":
    cli.leave(cli.run_verb(cli.label, sys.argv[1:]))
