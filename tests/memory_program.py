"""A rank that trains at each ZeRO stage and writes the bytes of all tensors that it holds before an optimizer step.

python memory_program.py RESULT
"""

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from checkpoint_program import BATCH
from launchers import ROOT

from xmodal.students import StudentConfig, create_student
from xmodal.training.config import OptimizerConfig
from xmodal.training.costs import num_parameters
from xmodal.training.engine import create_engine, resolve_deepspeed_config
from xmodal.training.ranks import start_process_group

STUDENT = StudentConfig(
    model="vit_tiny_patch16_224",
    pretrained=False,
    model_args={"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 4, "num_heads": 3},
)


def held_bytes() -> int:
    """Of all tensors; a storage that several share counts once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor):  # isinstance() wakes objects that pretend
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


def main() -> None:
    ranks = start_process_group(60)
    held: dict[str, int] = {}
    for stage in range(4):
        before = held_bytes()
        model = create_student(STUDENT)
        held["num_weights"] = num_parameters(model)
        path = str(ROOT / f"configs/deepspeed/zero{stage}.json")
        config = resolve_deepspeed_config(
            path, global_batch_size=BATCH, micro_batches=1, world_size=ranks.world_size, max_grad_norm=1.0
        )
        if stage == 3:  # it keeps this one for good
            held["bucket_elements"] = config["zero_optimization"]["reduce_bucket_size"]
        engine = create_engine(model, OptimizerConfig(ema_decay=0.5), config, path)
        pixels = torch.zeros(BATCH // ranks.world_size, 3, 32, 32, dtype=torch.bfloat16)
        for _ in range(2):
            engine.backward(engine(pixels).float().logsumexp(dim=1).mean())
            held[str(stage)] = held_bytes() - before
            engine.step()
        engine.destroy()
        del engine, model
    if ranks.is_first:
        Path(sys.argv[1]).write_text(json.dumps(held))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
