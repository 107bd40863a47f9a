"""What the demo prints at its end."""

from pathlib import Path
from typing import Any

from xmodal.curation.curate import CurateSummary
from xmodal.evaluation.table import interval_of, interval_text
from xmodal.labelling import LabelSummary
from xmodal.training.metrics_file import read_metrics


def summary_table(result: dict[str, Any], labelled: LabelSummary, curated: CurateSummary, output: Path) -> str:
    """The counts, the training curve in numbers, and the scores, as lines."""
    counts = result["counts"]
    failures = ", ".join(f"{count} {reason}" for reason, count in counts["failures"].items()) or "none"
    lines = [
        "",
        f"posts      {counts['posts']} with {counts['media']} pictures",
        f"samples    {counts['samples']} in {len(labelled.shards)} shards; failures: {failures}",
        "view       " + " → ".join(f"{step.samples} {step.step}" for step in curated.funnel),
        f"           {counts['train']} to train, {counts['val']} to validate",
        "",
        *_curve(output / "train"),
        "",
        f"AUC, positive against negative, on {counts['benchmark']} pictures that people judged",
        f"           {'':<10}AUC   [95 % interval]",
    ]
    for name, meaning in (("student", "sees the picture alone"), ("teacher", "reads the text alone")):
        lines.append(f"           {name:<10}{interval_text(*interval_of(result[name], 'auc'))}  {meaning}")
    lines += [
        f"           {'chance':<10}0.500",
        "",
        "seconds    " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result["seconds"].items()),
        f"numbers    {output / 'result.json'}",
        f"report     {output / 'report.html'}",
        f"student    {output / 'train' / 'student'}",
    ]
    return "\n".join(lines)


def _curve(train: Path) -> list[str]:
    """Up to eight validations, evenly chosen, with the training loss logged last before each."""
    lines = ["training   step   train loss   val loss   val KL"]
    loss = float("nan")
    rows = []
    for record in read_metrics(train):
        if record["kind"] == "step":
            loss = record["loss"]
        else:
            rows.append(
                f"           {record['step']:>4}   {loss:>10.3f}   {record['loss']:>8.3f}   {record['kl']:>6.3f}"
            )
    stride = max(1, -(-len(rows) // 8))
    chosen = rows[stride - 1 :: stride]
    return lines + (chosen if not rows or chosen[-1:] == rows[-1:] else [*chosen, rows[-1]])
