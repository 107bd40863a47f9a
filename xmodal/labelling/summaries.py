"""What `dataset.json` says of shards besides their sizes."""

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from shards.dataset import ShardSummary
from xmodal.labels import histogram

log = logging.getLogger(__name__)


def describe_shard(index: pa.Table) -> dict[str, Any]:
    """How many samples of each class there are, and who labelled them; a shard without samples has no such columns."""
    soft_labels = index["soft_label"].to_pylist() if "soft_label" in index.column_names else []
    teacher = index["teacher"][0].as_py() if "teacher" in index.column_names and index.num_rows else None
    return {"label_histogram": histogram(soft_labels), "teacher": teacher}


def one_teacher(shards: Sequence[ShardSummary]) -> dict[str, str] | None:
    """The teacher of all shards; an upgrade of it between two runs is worth a warning, the labels may differ."""
    teachers = [shard.description["teacher"] for shard in shards if shard.description["teacher"]]
    if any(teacher != teachers[0] for teacher in teachers):
        log.warning("the shards were labelled by more than one revision of the teacher; dataset.json says which")
    return teachers[0] if teachers else None
