"""The page of a report: what it shows, as plain values, and how they become HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xmodal.curation.funnel import FunnelStep
from xmodal.evaluation.table import interval_of, interval_text
from xmodal.labels import CLASSES
from xmodal.report.charts import Interval, Series, interval_plot, line_chart, stacked_bar
from xmodal.report.document import render_document
from xmodal.report.examples import Example, ExampleGroup
from xmodal.report.inputs import DatasetSummary, Evaluation, FailureCount, TrainingRun

CHANCE = 0.5
_METRIC_NAMES = {"n": "pictures judged", "auc": "AUC", "left_out": "pictures left out"}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number, or a short text, with its name."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric of several evaluations, in their order."""

    name: str
    cells: list[Fact]
    """The value, and its interval as note."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSection:
    """What all evaluations say on one benchmark."""

    name: str
    plot: Markup
    evaluations: list[str]
    rows: list[MetricRow]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A training curve."""

    title: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class CountRow:
    """A count of samples with its bar: a class of the histogram, or a step of the funnel with its classes."""

    name: str
    count: str
    bar: Markup
    share: str = ""
    by_class: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture with its soft label and what stands below it."""

    example: Example
    description: str
    bar: Markup
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class TileGroup:
    """Pictures that belong together."""

    title: str
    tiles: list[Tile]


@dataclass(frozen=True, kw_only=True)
class BenchmarkTiles:
    """The pictures of one benchmark."""

    name: str
    groups: list[TileGroup]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows, in its order."""

    title: str
    provenance: list[Fact]
    scores: list[Fact]
    counts: list[Fact]
    benchmarks: list[BenchmarkSection]
    settings: dict[str, str]
    charts: list[Chart]
    histogram: list[CountRow]
    funnel: list[CountRow]
    failures: list[FailureCount]
    train_tiles: list[TileGroup]
    benchmark_tiles: list[BenchmarkTiles]


def render(page: Page) -> str:
    """The page as one HTML document that needs nothing else."""
    return render_document(
        "xmodal.report", "report.html", title=page.title, shows_pictures=True, page=page, classes=CLASSES
    )


def score_facts(evaluations: Sequence[Evaluation]) -> list[Fact]:
    """The AUC of every evaluation on the first benchmark, then that of chance; nothing without an AUC."""
    benchmark = next(iter(_benchmark_names(evaluations)), None)
    facts = []
    for evaluation in evaluations:
        metrics = evaluation.metrics.get(benchmark, {}) if benchmark is not None else {}
        if "auc" in metrics:
            interval = _interval(evaluation.name, metrics, "auc")
            facts.append(Fact(name=f"{evaluation.name} AUC", value=_value(interval), note=_bounds(interval, "95 % ")))
    return [*facts, Fact(name="chance", value=f"{CHANCE:.3f}", note=f"benchmark: {benchmark}")] if facts else []


def count_facts(dataset: DatasetSummary, splits: Mapping[str, int]) -> list[Fact]:
    """How much there is of everything."""
    return [
        Fact(name="samples", value=f"{dataset.num_samples:,}"),
        Fact(name="shards", value=f"{dataset.num_shards:,}"),
        Fact(name="failures", value=f"{sum(failure.count for failure in dataset.failures):,}"),
        *(Fact(name=name, value=f"{count:,}", note="in the view") for name, count in splits.items()),
    ]


def benchmark_sections(evaluations: Sequence[Evaluation]) -> list[BenchmarkSection]:
    """One section a benchmark, in the order in which the evaluations name them."""
    sections = []
    for name in _benchmark_names(evaluations):
        judged = {evaluation.name: evaluation.metrics[name] for evaluation in evaluations if name in evaluation.metrics}
        intervals = [_interval(label, metrics, "auc") for label, metrics in judged.items()]
        sections.append(
            BenchmarkSection(
                name=name,
                plot=interval_plot(intervals, chance=CHANCE, description=f"AUC on {name} with 95 % intervals"),
                evaluations=list(judged),
                rows=[_metric_row(metric, judged) for metric in _metric_names(judged)],
            )
        )
    return sections


def training_charts(run: TrainingRun) -> list[Chart]:
    """The curves that have a point."""
    chosen: list[tuple[str, list[Series]]] = [
        (
            "Loss",
            [
                Series(name="training", points=run.step_curves["loss"], style="training"),
                Series(name="validation", points=run.validation_curves["loss"], style="validation"),
            ],
        ),
        (
            "Divergence from the teacher (KL, nats)",
            [Series(name="validation", points=run.validation_curves["kl"], style="validation")],
        ),
        (
            "Same class as the teacher (share)",
            [Series(name="validation", points=run.validation_curves["teacher_agreement"], style="validation")],
        ),
        ("Learning rate", [Series(name="training", points=run.step_curves["lr"], style="training")]),
    ]
    return [
        Chart(title=title, svg=line_chart(series, description=title, x_name="step"))
        for title, series in chosen
        if any(one.points for one in series)
    ]


def histogram_rows(by_class: Mapping[str, int]) -> list[CountRow]:
    """A row a class; the longest bar is that of the most frequent."""
    total, most = sum(by_class.values()), max(by_class.values())
    return [
        CountRow(
            name=name,
            count=f"{count:,}",
            share=f"{count / total:.1%}" if total else "—",
            bar=stacked_bar({name: count / most if most else 0}),
        )
        for name, count in by_class.items()
    ]


def funnel_rows(funnel: Sequence[FunnelStep]) -> list[CountRow]:
    """A row a step; the bars' lengths are shares of the first step's samples."""
    whole = max((step.samples for step in funnel), default=0) or 1
    return [
        CountRow(
            name=step.step,
            count=f"{step.samples:,}",
            by_class=tuple(f"{count:,}" for count in step.by_class.values()),
            bar=stacked_bar({name: count / whole for name, count in step.by_class.items()}),
        )
        for step in funnel
    ]


def tile_groups(groups: Sequence[ExampleGroup]) -> list[TileGroup]:
    """Examples with their bars and lines."""
    return [TileGroup(title=group.title, tiles=[_tile(example) for example in group.examples]) for group in groups]


def _tile(example: Example) -> Tile:
    soft_label = dict(zip(CLASSES, example.probabilities, strict=True))
    spoken = ", ".join(f"{name} {share:.2f}" for name, share in soft_label.items())
    if example.human is None:
        lines = [f"{max(example.probabilities):.2f}"]
    else:
        lines = [
            f"people {example.human:+z.2f}",
            f"student {soft_label['positive'] - soft_label['negative']:+z.2f}",
        ]
    return Tile(
        example=example,
        description=spoken,
        bar=stacked_bar(soft_label),
        lines=lines,
    )


def _benchmark_names(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics))


def _metric_names(judged: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics in their order, without the `_low` and `_high` of others."""
    names = dict.fromkeys(name for metrics in judged.values() for name in metrics)
    bounds = {f"{name}_{side}" for name in names for side in ("low", "high")}
    return [name for name in names if name not in bounds]


def _metric_row(metric: str, judged: Mapping[str, Mapping[str, float]]) -> MetricRow:
    cells = []
    for label, metrics in judged.items():
        interval = _interval(label, metrics, metric)
        is_count = f"{metric}_low" not in metrics and interval.value.is_integer()
        cells.append(
            Fact(
                name=label,
                value=f"{interval.value:,.0f}" if is_count else _value(interval),
                note=_bounds(interval),
            )
        )
    return MetricRow(name=_METRIC_NAMES.get(metric, metric.replace("_", " ")), cells=cells)


def _interval(label: str, metrics: Mapping[str, float], metric: str) -> Interval:
    value, low, high = interval_of(metrics, metric)
    return Interval(label=label, value=value, low=low, high=high)


def _value(interval: Interval) -> str:
    return interval_text(interval.value, interval.low, interval.high).partition(" ")[0]


def _bounds(interval: Interval, prefix: str = "") -> str:
    bounds = interval_text(interval.value, interval.low, interval.high).partition(" ")[2]
    return prefix + bounds if bounds else ""
