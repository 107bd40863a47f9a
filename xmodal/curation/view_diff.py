"""What differs between two views, and why: their recipes, what they read, and the step that dropped what one lacks."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError
from shards.storage import told_to_user
from shards.view import View, target_array
from xmodal.curation.dropped import last_steps, sample_names

NOT_READ = "in none of its datasets"
OTHER_TARGET = "other target"
_MAX_VALUE = 60


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that is not the same in both views; None where a view has none."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class ViewDiff:
    """What differs from view `before` to view `after`."""

    before: str
    after: str
    num_before: int
    num_after: int
    num_same: int
    """Samples that are in both, in the same split and with the same target."""
    changes: list[Change]
    """Of the recipe, the inputs, the tombstones and the versions, by dotted names."""
    removed: pa.Table
    """`key` and `why` of each sample that only `before` has: the step of `after` that dropped it, or NOT_READ."""
    added: pa.Table
    """`key` and `why` of each sample that only `after` has: the step of `before` that dropped it, or NOT_READ."""
    altered: pa.Table
    """`key` and `why` of each sample in both: the splits, as `train → val`, or OTHER_TARGET."""


def diff_views(before: View, after: View) -> ViewDiff:
    """Compare two views by their samples: those of equal key and picture (CRC-32) are the same.

    Raises UserError for a view that `xmodal curate` did not make.
    """
    changes = [
        change
        for section in ("recipe", "inputs", "benchmarks", "tombstones", "versions")
        for change in _changes(section, before.description.get(section), after.description.get(section))
        if change.name != "recipe.view"
    ]
    one, other = (_by_sample(view) for view in (before, after))
    removed = one.filter(pc.invert(pc.is_in(one["sample"], other["sample"])))
    added = other.filter(pc.invert(pc.is_in(other["sample"], one["sample"])))
    altered = _altered(one, other)
    return ViewDiff(
        before=before.url,
        after=after.url,
        num_before=before.table.num_rows,
        num_after=after.table.num_rows,
        num_same=one.num_rows - removed.num_rows - altered.num_rows,
        changes=changes,
        removed=_explained(removed, after),
        added=_explained(added, before),
        altered=altered,
    )


def _changes(name: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _changes(f"{name}.{key}", before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list):
        for place, (one, other) in enumerate(zip_longest(before, after)):
            yield from _changes(f"{name}[{place}]", one, other)
    elif before != after:
        yield Change(name=name, before=before, after=after)


def _by_sample(view: View) -> pa.Table:
    """`sample` (what it is known by), `key`, `split` and `target`, in the order of the samples; the first of equals."""
    table = view.table.select(["key", "split", "target"])
    names = sample_names(view.table["key"], view.table["image_crc32"])
    table = table.append_column("sample", names).sort_by("sample")
    names = table["sample"].combine_chunks()
    is_first = np.ones(len(names), dtype=bool)
    is_first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    return table.filter(is_first)


def _altered(one: pa.Table, other: pa.Table) -> pa.Table:
    one = one.filter(pc.is_in(one["sample"], other["sample"]))
    other = other.filter(pc.is_in(other["sample"], one["sample"]))
    before, after = one["split"].combine_chunks(), other["split"].combine_chunks()
    moved = pc.not_equal(before, after)
    why = pc.if_else(moved, pc.binary_join_element_wise(before, after, " → "), OTHER_TARGET)
    targets, other_targets = target_array(one), target_array(other)
    retargeted = (
        (targets != other_targets).any(axis=1)
        if targets.shape == other_targets.shape
        else np.ones(len(one), dtype=bool)
    )
    return pa.table({"key": one["key"], "why": why}).filter(pc.or_(moved, pa.array(retargeted)))


def _explained(samples: pa.Table, view: View) -> pa.Table:
    """Why a view does not have these."""
    counts = view.description.get("counts", {})
    if "funnel" not in counts or "dropped" not in view.description:
        raise UserError(f"{view.url}: no view that `xmodal curate` made", "compare views that it made")
    names = [f"dropped by {step['step']}" for step in counts["funnel"]]
    names[0] = NOT_READ
    steps = last_steps(view, samples["sample"])
    return pa.table({"key": samples["key"], "why": pa.array(names).take(pa.array(steps))})


def diff_text(diff: ViewDiff) -> str:
    """For a reader: what was set otherwise, and how many samples differ for which reason."""
    lines = [
        f"before  {diff.before}: {diff.num_before:,} samples",
        f"after   {diff.after}: {diff.num_after:,} samples; {diff.num_same:,} are the same",
        *(f"  {change.name}: {_short(change.before)} → {_short(change.after)}" for change in diff.changes),
    ]
    for title, table in (
        ("only before; after, they are", diff.removed),
        ("only after; before, they are", diff.added),
        ("in both, but not the same", diff.altered),
    ):
        lines.append(f"{title}: {table.num_rows:,}")
        counts = (
            table.group_by("why")
            .aggregate([("why", "count")])
            .sort_by([("why_count", "descending"), ("why", "ascending")])
        )
        lines += [f"  {row['why_count']:>10,}  {row['why']}" for row in counts.to_pylist()]
    return "\n".join(lines)


def write_differences(diff: ViewDiff, file: str) -> None:
    """A CSV with a row for each sample that differs: `key, change` (removed, added or altered)`, why`."""
    with told_to_user(file), open(file, "w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink)
        writer.writerow(["key", "change", "why"])
        for change, table in (("removed", diff.removed), ("added", diff.added), ("altered", diff.altered)):
            for batch in table.to_batches():
                writer.writerows((row["key"], change, row["why"]) for row in batch.to_pylist())


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"
