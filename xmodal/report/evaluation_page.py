"""The page of an evaluation: each student on each benchmark, with its metrics, reliability and confusion."""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from xmodal.evaluation.evaluate import Evaluation, Judgement
from xmodal.evaluation.metrics import NUM_BINS, POLES, confusion_counts, pole_probabilities
from xmodal.evaluation.reliability import reliability
from xmodal.evaluation.table import interval_of, interval_text, what_is_lacking
from xmodal.report.charts import Interval, ReliabilityCurve, matrix_chart, reliability_chart
from xmodal.report.document import render_document


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric, as text."""

    name: str
    value: str
    bounds: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One student on one benchmark."""

    title: str
    note: str
    reliability: Markup
    confusion: Markup
    rows: list[MetricRow]


def evaluation_page(evaluation: Evaluation) -> str:
    """The page as one HTML document that needs nothing else."""
    comparisons = [
        (
            one.benchmark,
            one.first,
            one.second,
            interval_text(one.accuracy_difference, one.accuracy_difference_low, one.accuracy_difference_high),
            f"{one.mcnemar_p:.3g}",
            interval_text(one.auc_difference, one.auc_difference_low, one.auc_difference_high),
            f"{one.auc_p:.3g}" if math.isfinite(one.auc_p) else "—",
        )
        for one in evaluation.comparisons
    ]
    return render_document(
        "xmodal.report",
        "evaluation.html",
        title="xmodal evaluation",
        sections=[_section(one) for one in evaluation.judgements],
        comparisons=comparisons,
    )


def _section(judgement: Judgement) -> Section:
    benchmark, metrics = judgement.benchmark, judgement.metrics
    known = ~np.isnan(judgement.probabilities).any(axis=1) & (benchmark.scores != 0)
    probabilities, human = judgement.probabilities[known], benchmark.scores[known]
    bins = [
        (one.confidence, Interval(label="", value=one.accuracy, low=one.accuracy_low, high=one.accuracy_high))
        for one in reliability(pole_probabilities(probabilities), (human > 0).astype(int), NUM_BINS)
    ]
    title = f"{judgement.model} on {benchmark.config.name}"
    curve = ReliabilityCurve(name=judgement.model, bins=bins, style="validation")
    partial = f"Partial: {what_is_lacking(metrics)}. " if metrics.get("partial") else ""
    return Section(
        title=title,
        note=f"{partial}{len(human)} judged. {benchmark.config.citation}",
        reliability=reliability_chart([curve], description=f"Reliability of {title}"),
        confusion=matrix_chart(
            confusion_counts(probabilities, human).tolist(), POLES, description=f"Confusion of {title}"
        ),
        rows=[_metric_row(name, judgement) for name in metrics if f"{name}_low" in metrics],
    )


def _metric_row(name: str, judgement: Judgement) -> MetricRow:
    value, _, bounds = interval_text(*interval_of(judgement.metrics, name)).partition(" ")
    return MetricRow(name=name.replace("_", " "), value=value, bounds=bounds)
