"""All ranks must train the same: compared at the start, by a hash over all of them."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import features

from shards.errors import UserError
from shards.view import View
from xmodal.training.config import TrainConfig
from xmodal.training.engine import deepspeed_file
from xmodal.training.pinned_config import dotted
from xmodal.training.ranks import Ranks

_PROJECT = Path(__file__).parent.parent.parent


def code_version(packages: Sequence[str] = ("launch", "shards", "xmodal")) -> str:
    """A hash over the project's own Python files."""
    hashing = hashlib.sha256()
    for package in packages:
        for path in sorted((_PROJECT / package).rglob("*.py")):
            content = path.read_bytes()
            hashing.update(f"{path.relative_to(_PROJECT)}:{len(content)}:".encode() + content)
    return hashing.hexdigest()[:16]


_PACKAGES = ("deepspeed", "numpy", "pillow", "timm")
"""Besides torch, what makes a student, its pixels, their order and its steps."""


def versions() -> dict[str, str | None]:
    """What decides how a config is carried out."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,  # and what it was built for
        **{name: version(name) for name in _PACKAGES},
        "libjpeg-turbo": features.version("libjpeg_turbo"),  # the same Pillow may be built with another
    }


def facts_of_run(config: TrainConfig, view: View) -> dict[str, Any]:
    """What all ranks must have in common. Paths may differ from host to host; what lies there may not."""
    settings = {
        f"config.{name}": value
        for name, value in dotted(json.loads(json.dumps(asdict(config))))
        if name not in ("view", "output", "deepspeed", "stop_file", "feature_folder", "stream.cache_folder")
    }
    file = deepspeed_file(config.deepspeed)
    content = file.read_text(errors="replace") if file.is_file() else None  # that it is missing is told later
    return {**settings, "the content of `deepspeed`": content, "the view's fingerprint": view.fingerprint, **versions()}


def require_agreement(facts: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise UserError on all ranks, naming what differs, unless all of them have the same `facts` (plain values)."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if len(set(gather_objects(digest, ranks))) == 1:
        return
    differences = differing(gather_objects(dict(facts), ranks))
    raise UserError(
        f"the ranks do not agree: {'; '.join(differences)}",
        "give all nodes the same config, code, packages and view",
    )


def differing(facts_of_ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each fact that not all ranks share with the first: what it is there, and on the first rank that differs."""
    first = facts_of_ranks[0]
    found: dict[str, str] = {}
    for rank, facts in enumerate(facts_of_ranks):
        for name in first.keys() | facts.keys():
            if facts.get(name) != first.get(name):
                found.setdefault(
                    name, f"{name} is {first.get(name)!r} on rank 0 and {facts.get(name)!r} on rank {rank}"
                )
    return [found[name] for name in sorted(found)]


def gather_objects(value: Any, ranks: Ranks) -> list[Any]:
    """The `value` of each rank; all ranks call it."""
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, value)
    return gathered
