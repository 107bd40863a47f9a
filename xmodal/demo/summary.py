"""What the demo prints at its end."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from xmodal.curation.curate import CurateSummary
from xmodal.curation.funnel import FunnelStep
from xmodal.evaluation.table import interval_of, interval_text
from xmodal.labelling.label import LabelSummary
from xmodal.training.metrics_file import read_metrics


def summary_table(result: dict[str, Any], labelled: LabelSummary, curated: CurateSummary, output: Path) -> str:
    """The counts, the training curve in numbers, and the scores, as lines."""
    counts = result["counts"]
    failures = ", ".join(f"{count} {reason}" for reason, count in counts["failures"].items()) or "none"
    lines = [
        "",
        f"posts      {counts['posts']} with {counts['media']} pictures",
        f"samples    {counts['samples']} in {len(labelled.shards)} shards; failures: {failures}",
        f"view       {_funnel(curated.funnel)}",
        f"           {counts['train']} to train, {counts['val']} to validate",
        "",
        *_curve(output / "train"),
        "",
        "AUC, positive against negative, on pictures that people judged",
        f"           {'':<10}AUC   [95 % interval]   pictures",
    ]
    for name, meaning in (("student", "sees the picture alone"), ("teacher", "reads the text alone")):
        interval = interval_text(*interval_of(result[name], "auc"))
        lines.append(f"           {name:<10}{interval:<22}  {result[name]['n']:>8}   {meaning}")
    lines += [
        f"           {'chance':<10}0.500",
        "",
        "seconds    " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result["seconds"].items()),
        f"numbers    {output / 'result.json'}",
        f"report     {output / 'report.html'}",
        f"student    {output / 'train' / 'student'}",
    ]
    return "\n".join(lines)


def _funnel(funnel: Sequence[FunnelStep]) -> str:
    """`3763 labelled - 34 exact duplicates - … = 2657`."""
    dropped = [f"{before.samples - after.samples} {after.step}" for before, after in pairwise(funnel)]
    return f"{' - '.join([f'{funnel[0].samples} {funnel[0].step}', *dropped])} = {funnel[-1].samples}"


def _curve(train: Path) -> list[str]:
    """Up to eight validations, evenly chosen, with the mean training loss since the validation before each."""
    lines = ["training   step   train loss   val loss   val KL"]
    rows, losses = [], []
    for record in read_metrics(train):
        if record["kind"] == "step":
            losses.append(_number(record["loss"]))
        else:
            mean = sum(losses) / len(losses) if losses else math.nan
            val_loss, val_kl = _number(record["loss"]), _number(record["kl"])
            rows.append(f"           {record['step']:>4}   {mean:>10.3f}   {val_loss:>8.3f}   {val_kl:>6.3f}")
            losses = []
    stride = max(1, -(-len(rows) // 8))
    chosen = rows[stride - 1 :: stride]
    return lines + (chosen if not rows or chosen[-1:] == rows[-1:] else [*chosen, rows[-1]])


def _number(value: float | None) -> float:
    """A logged number; those that were not finite are logged as null."""
    return math.nan if value is None else value
