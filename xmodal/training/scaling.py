"""From a number of pictures to GPU-hours, nodes, bytes and the first bottleneck: the arithmetic of docs/scaling.md."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import timm
import torch

from xmodal.labels import CLASSES
from xmodal.training.costs import (
    BUCKET_ELEMENTS,
    PASSES,
    PEAK_TFLOPS,
    activation_bytes,
    forward_flops,
    num_parameters,
    rank_memory,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine, as its makers state it: here a DGX H100 (NVIDIA, DGX H100/H200 user guide)."""

    num_gpus: int = 8
    peak: float = PEAK_TFLOPS["H100"] * 1e12
    """FLOP/s of a GPU in 16 bits."""
    nvlink: float = 450e9
    """Bytes/s of a GPU to others of its node, each way: half of the 900 GB/s that are stated for both."""
    network: float = 8 * 400e9 / 8
    """Bytes/s of a node to others, each way: eight adapters of 400 Gb/s."""
    storage: float = 25e9 / 8
    """Bytes/s of a node from S3. AWS states up to 100 Gb/s for its largest machines; a quarter of it is assumed."""
    num_cores: int = 112
    disk: float = 30e12
    """Bytes of NVMe for a cache."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained on, and how."""

    mfu: float = 0.4
    """Assumed, not measured: what well-fed ViTs reach in bf16. The step line says yours."""
    epochs: int = 5
    """As in configs/train/vit_l16.yaml."""
    bytes_per_image: float = 100e3
    """A JPEG of about 600 by 450 pixels."""
    images_per_shard: int = 1000
    images_per_core_second: float = 594
    """Read, decoded and augmented: 1,188 by two workers on two cores of a cloud machine (benchmarks/loader.py)."""
    images_per_gpu_step: int = 64
    """Between two exchanges of gradients."""
    least_lanes: int = 64
    """As many are taken as the ranks divide, and no fewer."""
    shards_per_block: int = 4
    hours: float = 24
    """In which the run should end."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model by what it costs."""

    name: str
    num_parameters: int
    forward_flops: int
    """Of an image."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs. Shares are of the time that the GPUs compute: from 100 % on, they would wait."""

    gpu_hours: float
    num_nodes: int
    hours: float
    images_per_second: float
    """Of a GPU."""
    num_lanes: int
    dataset: float
    """Bytes, which all nodes together fetch once an epoch."""
    least_cache: float
    """Bytes a node: the shards that its lanes mix, and as many that are fetched ahead."""
    node_read: float
    """Bytes/s that a node fetches."""
    num_cores: float
    """Of a node, for decoding."""
    storage_share: float
    decode_share: float
    exchange_share: float
    """Of gradients and weights between ranks, if nothing of it is hidden behind the passes."""

    @property
    def first_bottleneck(self) -> str:
        """What the GPUs would wait for first if they, or the model, became faster."""
        shares = {
            "S3": self.storage_share,
            "decoding": self.decode_share,
            "exchange of gradients": self.exchange_share,
        }
        return max(shares, key=lambda name: shares[name])


def plan(student: Student, num_images: int, node: Node, work: Work) -> Plan:
    """What training on so many images takes."""
    images_per_second = node.peak * work.mfu / (PASSES * student.forward_flops)
    gpu_hours = num_images * work.epochs / images_per_second / 3600
    num_nodes = math.ceil(gpu_hours / work.hours / node.num_gpus)
    node_read = node.num_gpus * images_per_second * work.bytes_per_image
    num_cores = node.num_gpus * images_per_second / work.images_per_core_second
    num_ranks = num_nodes * node.num_gpus
    # ZeRO 0 to 2: each rank sends the gradients once and the weights once, 2 bytes of each (Rajbhandari et al., 7.1),
    # to its neighbour in a ring. A ring leaves each node once: what one GPU sends is what crosses a node's network.
    exchanged = 4 * student.num_parameters * (num_ranks - 1) / num_ranks
    link = node.nvlink if num_nodes == 1 else min(node.nvlink, node.network)
    dataset = num_images * work.bytes_per_image
    num_lanes = num_ranks * math.ceil(work.least_lanes / num_ranks)
    block = work.shards_per_block * work.images_per_shard * work.bytes_per_image
    return Plan(
        gpu_hours=gpu_hours,
        num_nodes=num_nodes,
        hours=gpu_hours / num_ranks,
        images_per_second=images_per_second,
        num_lanes=num_lanes,
        dataset=dataset,
        least_cache=min(dataset, 2 * num_lanes // num_nodes * block),
        node_read=node_read,
        num_cores=num_cores,
        storage_share=node_read / node.storage,
        decode_share=num_cores / node.num_cores,
        exchange_share=exchanged / link * images_per_second / work.images_per_gpu_step,
    )


NUM_IMAGES = {"1.5 M": 1_500_000, "100 M": 100_000_000, "1 B": 1_000_000_000}
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
_SIZE = 224


def with_tables(text: str) -> str:
    """A page with the tables between its marks `<!-- table NAME -->` and `<!-- end -->` made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", made, text, flags=re.DOTALL)


@cache
def _model(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(MODELS[name], pretrained=False, num_classes=len(CLASSES))


@cache
def _student(name: str) -> Student:
    flops = forward_flops(_model(name), _SIZE)
    assert flops is not None
    return Student(name=name, num_parameters=num_parameters(_model(name)), forward_flops=flops)


def _students_table() -> str:
    rows = []
    for name in MODELS:
        student = _student(name)
        speed = Node().peak * Work().mfu / (PASSES * student.forward_flops)
        rows.append(
            [
                name,
                f"{student.num_parameters / 1e6:.1f} M",
                f"{student.forward_flops / 1e9:.1f}",
                f"{PASSES * student.forward_flops / 1e9:.0f}",
                f"{speed:,.0f}",
            ]
        )
    head = ["", "parameters", "GFLOP an image, forward", "in training", f"images/s a GPU at {Work().mfu:.0%} MFU"]
    return _table(head, rows)


def _plans(row: Callable[[Plan], list[str]]) -> list[list[str]]:
    return [
        [name, label, *row(plan(_student(name), number, Node(), Work()))]
        for name in MODELS
        for label, number in NUM_IMAGES.items()
    ]


def _runs_table() -> str:
    rows = _plans(
        lambda made: [
            f"{made.gpu_hours:,.1f}",
            str(made.num_nodes),
            f"{made.hours:.1f}",
            str(made.num_lanes),
            f"{made.dataset / 1e12:,.2f} TB",
            f"{made.least_cache / 1e9:,.0f} GB",
            "yes" if made.dataset <= Node().disk else "no",
        ]
    )
    head = ["", "images", "GPU-hours", "nodes", "hours", "lanes", "shards", "least cache a node", "all fits on a node"]
    return _table(head, rows)


def _bottlenecks_table() -> str:
    rows = _plans(
        lambda made: [
            f"{made.node_read / 1e9:.2f} GB/s",
            f"{made.storage_share:.0%}",
            f"{made.num_cores:.0f}",
            f"{made.decode_share:.0%}",
            f"{made.exchange_share:.0%}",
            made.first_bottleneck,
        ]
    )
    head = ["", "images", "a node reads", "of S3", "cores decode", "of the node's", "exchange", "first bottleneck"]
    return _table(head, rows)


def _memory_table() -> str:
    rows = []
    for name in MODELS:
        model = _model(name)
        for recomputed in (False, True):
            model.set_grad_checkpointing(recomputed)  # type: ignore[operator]
            activations = activation_bytes(model, _SIZE, Work().images_per_gpu_step, torch.bfloat16)
            assert activations is not None
            for stage in range(4):
                totals = [
                    rank_memory(
                        _student(name).num_parameters, stage=stage, world_size=world_size, has_average=True,
                        activations=activations, bucket_elements=BUCKET_ELEMENTS,
                    ).total
                    for world_size in (8, 64)
                ]  # fmt: skip
                cells = [f"{total / 2**30:.1f}" for total in totals]
                rows.append([name, "yes" if recomputed else "no", str(stage), *cells])
    return _table(["", "gradient checkpointing", "ZeRO", "GiB a rank of 8", "of 64"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "students": _students_table,
    "runs": _runs_table,
    "bottlenecks": _bottlenecks_table,
    "memory": _memory_table,
}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
