"""What every rank has measured for itself is averaged before it is judged or exported."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def measure_and_average(rank: int, folder: str) -> None:
    from xmodal.training.engine import average_buffers

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    norm = torch.nn.BatchNorm1d(3, momentum=1.0)
    norm.register_buffer("table", torch.full((2,), float(rank)), persistent=False)
    norm(torch.full((4, 3), float(rank)))
    average_buffers(norm, 2)
    torch.save(dict(norm.named_buffers()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_mean_of_their_running_statistics():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure_and_average, args=(folder,), nprocs=2)
        first, second = (torch.load(Path(folder, f"{rank}.pt")) for rank in range(2))
    for buffers in (first, second):
        assert buffers["running_mean"].tolist() == [0.5, 0.5, 0.5]
        assert buffers["num_batches_tracked"] == 1
    # Not part of the state dict: each rank made it for itself, and training does not change it.
    assert (first["table"].tolist(), second["table"].tolist()) == ([0.0, 0.0], [1.0, 1.0])
