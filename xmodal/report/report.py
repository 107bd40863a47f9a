"""Everything of a run → one self-contained HTML page."""

from dataclasses import dataclass, field
from pathlib import Path

import xmodal
from shards.errors import ConfigError
from xmodal.curation.forgotten import without_forgotten
from xmodal.evaluation.output_files import check_output_file, write_html
from xmodal.report.examples import benchmark_examples, train_examples
from xmodal.report.inputs import (
    read_dataset_summary,
    read_evaluations,
    read_predictions,
    read_training_run,
    read_view_summary,
)
from xmodal.report.page import (
    BenchmarkTiles,
    Fact,
    Page,
    benchmark_sections,
    count_facts,
    funnel_rows,
    histogram_rows,
    render,
    score_facts,
    tile_groups,
    training_charts,
)

_NUM_PER_CLASS = 4
_NUM_PER_BENCHMARK_GROUP = 8


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What goes into the page of a run, and where the page goes."""

    dataset: str
    """Folder of a finished dataset."""
    view: str
    """Folder of a view."""
    train: str
    """Folder of a training run: its config.json and metrics.jsonl are read."""
    evaluations: list[str] = field(default_factory=list)
    """JSON files of `xmodal evaluate --json`. Of a single student, the file's stem names its row: student.json."""
    predictions: list[str] = field(default_factory=list)
    """CSV files of `xmodal evaluate --output`, whose most telling pictures are shown. They need `images`."""
    images: str | None = None
    """Folder that the predictions' paths are relative to."""
    output: str
    """The HTML file; on s3:// too."""
    title: str = "xmodal run"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if self.predictions and self.images is None:
            raise ConfigError("images", None, "must be given with predictions: their paths are relative to it")
        stems = [Path(file).stem for file in self.evaluations]
        if len(set(stems)) < len(stems):
            raise ConfigError("evaluations", self.evaluations, "must have different file names: they name the rows")


def report(config: ReportConfig) -> str:
    """Write the page and return its path. The same inputs give the same bytes.

    Raises UserError for an input that is missing or malformed, naming it, and for an output that cannot be written.
    """
    page = render(gather(config))
    check_output_file("output", config.output)
    write_html(config.output, page)
    return config.output


def gather(config: ReportConfig) -> Page:
    """Read everything that the page shows. Raises UserError for an input that is missing or malformed."""
    dataset = read_dataset_summary(config.dataset)
    view = read_view_summary(config.view)
    run = read_training_run(config.train)
    evaluations = read_evaluations(config.evaluations)
    predictions = [read_predictions(file) for file in config.predictions]
    return Page(
        title=config.title,
        provenance=[
            Fact(name="xmodal", value=xmodal.__version__),
            Fact(name="view", value=view.view.fingerprint[:12], note=view.view.fingerprint),
            Fact(name="teacher", value=dataset.teacher),
            Fact(name="student", value=run.settings.get("student.model", "not recorded")),
        ],
        scores=score_facts(evaluations),
        counts=count_facts(dataset, view.splits),
        benchmarks=benchmark_sections(evaluations),
        settings=run.settings,
        charts=training_charts(run),
        histogram=histogram_rows(dataset.by_class),
        funnel=funnel_rows(view.funnel),
        failures=dataset.failures,
        train_tiles=tile_groups(train_examples(without_forgotten(view.view), _NUM_PER_CLASS)),
        benchmark_tiles=[
            BenchmarkTiles(
                name=one.name,
                groups=tile_groups(benchmark_examples(one, config.images or "", _NUM_PER_BENCHMARK_GROUP)),
            )
            for one in predictions
        ],
    )
