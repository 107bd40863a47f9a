"""Conflicts: near duplicates whose soft labels put them into different classes, so noise of the crowd or the teacher.

A group's spread is the largest difference of one class's probability between two of its members.
"""

import io
from dataclasses import dataclass
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xmodal.labels import CLASSES

_NUM_BINS = 10
_LIST_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),  # the groups of largest spread first
        ("spread", pa.float32()),
        ("dataset", pa.int32()),  # index into view.json's "datasets"
        ("key", pa.string()),
        ("class", pa.string()),
        ("soft_label", pa.list_(pa.float32())),
    ]
)
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 } .small { font-size: 11px; fill: #666 }
.agree { fill: #9aa7b5 } .unlike { fill: #c8452f } .axis { stroke: #999 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .small { fill: #aaa } }
"""


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    """The members of all groups in conflict, in the order of the samples, and how all groups are distributed."""

    is_listed: np.ndarray
    """bool, for every sample: whether it is such a member. The next four have an entry for each of these."""
    groups: np.ndarray
    """int64."""
    spreads: np.ndarray
    """float32, of the member's group."""
    datasets: np.ndarray
    """int32."""
    soft_labels: np.ndarray
    """float32 `(m, classes)`."""
    num_agreeing: np.ndarray
    """int64 `(10,)`: groups of one class alone, by their spread in steps of a tenth."""
    num_in_conflict: np.ndarray
    """int64 `(10,)`: the others."""
    num_by_classes: dict[tuple[str, str], int]
    """How many groups hold pictures of both of two classes."""


def find_conflicts(groups: np.ndarray, soft_labels: np.ndarray, datasets: np.ndarray, asked: np.ndarray) -> Conflicts:
    """Find the groups (int64 `(n,)`, from 0) with members of different classes, of the samples `asked` for (bool)."""
    places = np.flatnonzero(asked)
    members = places[np.bincount(groups[places])[groups[places]] > 1] if len(places) else places
    members = members[np.argsort(groups[members], kind="stable")]
    of_members = groups[members]
    starts = np.flatnonzero(np.diff(of_members, prepend=-1))
    labels = soft_labels[members]
    if len(members):
        spreads = (np.maximum.reduceat(labels, starts) - np.minimum.reduceat(labels, starts)).max(axis=1)
        is_held = np.logical_or.reduceat(np.eye(len(CLASSES), dtype=bool)[labels.argmax(axis=1)], starts)
    else:
        spreads, is_held = np.empty(0, dtype=np.float32), np.empty((0, len(CLASSES)), dtype=bool)
    in_conflict = is_held.sum(axis=1) > 1
    sizes = np.diff(starts, append=len(members))
    is_listed = np.zeros(len(groups), dtype=bool)
    is_listed[members[np.repeat(in_conflict, sizes)]] = True
    spread_of = np.zeros(len(groups), dtype=np.float32)
    spread_of[members] = np.repeat(spreads, sizes)
    return Conflicts(
        is_listed=is_listed,
        groups=groups[is_listed],
        spreads=spread_of[is_listed],
        datasets=datasets[is_listed],
        soft_labels=soft_labels[is_listed],
        num_agreeing=_histogram(spreads[~in_conflict]),
        num_in_conflict=_histogram(spreads[in_conflict]),
        num_by_classes={
            (CLASSES[one], CLASSES[other]): int((is_held[:, one] & is_held[:, other]).sum())
            for one, other in combinations(range(len(CLASSES)), 2)
        },
    )


def _histogram(spreads: np.ndarray) -> np.ndarray:
    bins = np.minimum((spreads * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    return np.bincount(bins, minlength=_NUM_BINS)


def conflict_list(conflicts: Conflicts, keys: pa.ChunkedArray) -> bytes:
    """A Parquet table of the members, whose `keys` are given: the groups of largest spread first, each by its keys."""
    sorting = pc.sort_indices(keys).to_numpy()
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[sorting] = np.arange(len(keys))
    _, numbers = np.unique(conflicts.groups, return_inverse=True)
    first_rank = np.full(int(numbers.max(initial=-1)) + 1, len(keys), dtype=np.int64)
    np.minimum.at(first_rank, numbers, ranks)
    order = np.lexsort((ranks, first_rank[numbers], -conflicts.spreads))
    soft_labels = conflicts.soft_labels[order]
    table = pa.table(
        {
            "group": np.cumsum(np.diff(numbers[order], prepend=-1) != 0) - 1,
            "spread": conflicts.spreads[order],
            "dataset": conflicts.datasets[order],
            "key": keys.take(pa.array(order)),
            "class": pa.array(CLASSES).take(pa.array(soft_labels.argmax(axis=1))),
            "soft_label": pa.FixedSizeListArray.from_arrays(soft_labels.ravel(), len(CLASSES)),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table.cast(_LIST_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def conflict_figure(conflicts: Conflicts) -> bytes:
    """An SVG: how many groups of near duplicates have which spread, and which of them are in conflict."""
    left, bottom, top, width, height = 20, 210, 70, 44, 300
    total = conflicts.num_agreeing + conflicts.num_in_conflict
    num_groups, num_unlike = int(total.sum()), int(conflicts.num_in_conflict.sum())
    share = f" ({num_unlike / num_groups:.1%})" if num_groups else ""
    title = f"{num_groups:,} groups of near duplicates, {num_unlike:,}{share} with pictures of different classes"
    svg = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 480 {height}", "role": "img", "aria-label": title},
    )
    ElementTree.SubElement(svg, "style").text = _STYLE
    _text(svg, left, 24, title)
    _bar(svg, "agree", left, 36, 10, 10)
    _text(svg, left + 16, 45, "one class", "small")
    _bar(svg, "unlike", left + 90, 36, 10, 10)
    _text(svg, left + 106, 45, "different classes", "small")
    for number in range(_NUM_BINS):
        x, y = left + number * width, float(bottom)
        for name, counts in (("unlike", conflicts.num_in_conflict), ("agree", conflicts.num_agreeing)):
            length = (bottom - top) * counts[number] / max(1, total.max())
            y -= length
            _bar(svg, name, x + 2, y, width - 4, length)
        if total[number]:
            _text(svg, x + width / 2, y - 4, f"{total[number]:,}", "small", anchor="middle")
        _text(svg, x, bottom + 16, f"{number / _NUM_BINS:.1f}", "small", anchor="middle")
    ElementTree.SubElement(
        svg,
        "line",
        {"class": "axis", "x1": f"{left}", "x2": f"{left + _NUM_BINS * width}", "y1": f"{bottom}", "y2": f"{bottom}"},
    )
    _text(svg, left + _NUM_BINS * width, bottom + 16, "1.0", "small", anchor="middle")
    _text(svg, left, bottom + 36, "spread: largest difference of a class's probability within the group", "small")
    pairs = "   ".join(f"{one} and {other}: {count:,}" for (one, other), count in conflicts.num_by_classes.items())
    _text(svg, left, bottom + 60, pairs)
    return ElementTree.tostring(svg, encoding="utf-8", xml_declaration=True)


def _bar(svg: ElementTree.Element, style: str, x: float, y: float, width: float, height: float) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ElementTree.SubElement(svg, "rect", {"class": style, **place})


def _text(
    svg: ElementTree.Element, x: float, y: float, content: str, style: str = "", *, anchor: str = "start"
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ElementTree.SubElement(svg, "text", attributes | ({"class": style} if style else {})).text = content
