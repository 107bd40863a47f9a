"""A dataset and what people said of its posts → how well its teacher is calibrated, as it is and tempered."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.checks import require_range
from shards.errors import ConfigError, UserError
from xmodal.evaluation.reliability import ReliabilityBin, calibration_error, reliability
from xmodal.evaluation.table import interval_text
from xmodal.label_quality.calibration import fit_temperature, negative_log_likelihood, tempered
from xmodal.label_quality.human_labels import posts_of_rows, read_human_labels
from xmodal.label_quality.labels_of_dataset import first_of_each, read_labels, soft_labels_of, teacher_of
from xmodal.label_quality.outputs import check_outputs, write_outputs
from xmodal.label_quality.page import Figure, Page, Table
from xmodal.report.charts import Interval, ReliabilityCurve, reliability_chart

_LEAST_POSTS = 20


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Which dataset's teacher is held against whom."""

    dataset: str
    """Folder of a finished dataset."""
    human: str
    """CSV file of what people said of the texts: `post_id`, or `path` of a picture of the post, and a class."""
    class_column: str = "class"
    """The column of the class: negative, neutral, positive, or 0, 1, 2."""
    num_bins: int = 15
    """Bins of confidence, equally wide over [0, 1]."""
    num_draws: int = 1000
    """Bootstrap draws behind each interval."""
    seed: int = 0
    """Decides the halves and the bootstrap draws."""
    json: str | None = None
    """File for the numbers as JSON."""
    output: str | None = None
    """HTML file for the table and the reliability figure."""

    def __post_init__(self) -> None:
        require_range(self, "num_bins", "num_draws", least=1)
        require_range(self, "seed", least=0)
        for key in ("dataset", "human", "class_column"):
            if not getattr(self, key):
                raise ConfigError(key, getattr(self, key), "must not be empty")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return interval_text(self.value, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class CalibrateSummary:
    """How well a teacher is calibrated. All but `temperature` is of the half that it was not fitted on."""

    num_fitted: int
    num_judged: int
    num_unmatched: int
    """Names in the file that add no post: of none in the dataset, of one that others name, or called by two classes."""
    temperature: Estimate
    accuracy: Estimate
    as_it_is: dict[str, Estimate]
    """`confidence`, `calibration_error` and `negative_log_likelihood`."""
    tempered: dict[str, Estimate]
    """The same with the temperature applied."""
    gain: dict[str, Estimate]
    """By how much tempering lowers each, over the same draws."""
    bins: dict[str, list[ReliabilityBin]]
    """Of the reliability figure, `as_it_is` and `tempered`."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return asdict(self)


def calibrate(config: CalibrateConfig) -> CalibrateSummary:
    """Fit a temperature on one half of the posts that people judged, and judge it on the other.

    Posts of the same text, such as reposts, are on the same side. Raises UserError for a dataset or a file that cannot
    be read, and where fewer than 20 posts or texts are judged.
    """
    check_outputs(config.json, config.output)
    human = read_human_labels(config.human, config.class_column)
    table = read_labels(config.dataset, ["post_id", "url"])
    found = posts_of_rows(human, table["post_id"].to_pylist(), table["url"].to_pylist())
    if len(found) < _LEAST_POSTS:
        raise UserError(
            f"{config.human}: {len(found)} of its {len(human.classes)} rows mean posts of {config.dataset}",
            f"{_LEAST_POSTS} or more are needed; {human.named_by} must be as the dataset has it",
        )
    # All pictures of a post have its label: it counts once.
    post_ids, places = first_of_each(table["post_id"])
    is_judged = np.isin(post_ids, list(found))
    probabilities = soft_labels_of(table)[places[is_judged]]
    classes = np.array([found[post_id] for post_id in post_ids[is_judged].tolist()])
    texts = same_texts(probabilities)
    num_texts = int(texts.max()) + 1
    if num_texts < _LEAST_POSTS:
        raise UserError(
            f"{config.human}: its {len(classes)} posts have {num_texts} different soft labels in {config.dataset}",
            f"{_LEAST_POSTS} or more are needed; see that the teacher tells texts from each other",
        )
    fitted, judged = (
        _Half(probabilities=probabilities[rows], classes=classes[rows], texts=texts[rows])
        for rows in halves(texts, np.random.default_rng(config.seed))
    )
    summary = _summary(fitted, judged, num_unmatched=len(human.classes) - len(found), config=config)
    write_outputs(config.json, summary.to_json(), config.output, lambda: _page(config, summary))
    return summary


def same_texts(probabilities: np.ndarray) -> np.ndarray:
    """Number the texts of posts by what a teacher said of them, `(n, 3)`: int64 `(n,)`, from 0, one number a text.

    Most datasets hold no texts, but a teacher says the same of the same one. Posts that share a number may have texts
    of their own: then more is held together than must be. A whole class, as given labels are, says nothing of the text.
    """
    # The last of six digits may be another where a text was read among others.
    rounded = np.round(probabilities, 4)
    _, numbers = np.unique(rounded, axis=0, return_inverse=True)
    is_whole = probabilities.max(axis=1) == 1
    alone = numbers.max() + 1 + np.arange(len(numbers))
    return np.unique(np.where(is_whole, alone, numbers), return_inverse=True)[1]


def halves(texts: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut posts into two halves that share no text, given the number of each post's text. Returns the rows of each.

    They are as near to equal as the posts of one text let them be; neither is empty, if there are two texts.
    """
    places = generator.permutation(texts.max() + 1)[texts]
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places))[:-1]
    middle = ends[np.abs(2 * ends - len(texts) - 0.5).argmin()]  # of an odd number, the first half has one more
    return order[:middle], order[middle:]


@dataclass(frozen=True, kw_only=True)
class _Half:
    """Posts with what the teacher and people say of them."""

    probabilities: np.ndarray
    """As stored, `(n, 3)`."""
    classes: np.ndarray
    """As people say, `(n,)`."""
    texts: np.ndarray
    """Number of each post's text, `(n,)`."""

    def draws(self, num_draws: int, generator: np.random.Generator) -> Iterator["_Half"]:
        """So many bootstrap draws of as many texts as there are, each with all of its posts."""
        order = np.argsort(self.texts, kind="stable")
        _, starts, sizes = np.unique(self.texts[order], return_index=True, return_counts=True)
        for _ in range(num_draws):
            drawn = generator.integers(0, len(starts), len(starts))
            ends = np.cumsum(sizes[drawn])
            rows = order[np.arange(ends[-1]) + np.repeat(starts[drawn] - (ends - sizes[drawn]), sizes[drawn])]
            yield _Half(probabilities=self.probabilities[rows], classes=self.classes[rows], texts=self.texts[rows])

    def measures(self, temperature: float, num_bins: int) -> dict[str, float]:
        """`confidence`, `calibration_error` and `negative_log_likelihood`, once tempered."""
        probabilities = self.tempered(temperature)
        return {
            "confidence": float(probabilities.max(axis=1).mean()),
            "calibration_error": calibration_error(probabilities, self.classes, num_bins),
            "negative_log_likelihood": negative_log_likelihood(self.probabilities, self.classes, temperature),
        }

    def accuracy(self) -> float:
        return float((self.probabilities.argmax(axis=1) == self.classes).mean())

    def tempered(self, temperature: float) -> np.ndarray:
        # By 1 they would come out the same but for rounding, and change bins by it.
        return self.probabilities if temperature == 1 else tempered(self.probabilities, temperature)


def _summary(fitted: _Half, judged: _Half, *, num_unmatched: int, config: CalibrateConfig) -> CalibrateSummary:
    generator = np.random.default_rng([config.seed, 1])
    temperatures = [
        fit_temperature(half.probabilities, half.classes)
        for half in itertools.chain([fitted], fitted.draws(config.num_draws, generator))
    ]
    sides = {"as_it_is": 1.0, "tempered": temperatures[0]}
    accuracies: list[float] = []
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for half in itertools.chain([judged], judged.draws(config.num_draws, generator)):
        accuracies.append(half.accuracy())
        for side, temperature in sides.items():
            found[side].append(half.measures(temperature, config.num_bins))
    before, after = ({name: [measures[name] for measures in found[side]] for name in found[side][0]} for side in sides)
    return CalibrateSummary(
        num_fitted=len(fitted.classes),
        num_judged=len(judged.classes),
        num_unmatched=num_unmatched,
        temperature=_estimate(temperatures),
        accuracy=_estimate(accuracies),
        as_it_is={name: _estimate(values) for name, values in before.items()},
        tempered={name: _estimate(values) for name, values in after.items()},
        gain={name: _estimate(np.subtract(before[name], after[name]).tolist()) for name in before},
        bins={
            side: reliability(judged.tempered(temperature), judged.classes, config.num_bins)
            for side, temperature in sides.items()
        },
    )


def _estimate(values: Sequence[float]) -> Estimate:
    """The first value, with the percentiles of the others: those of the bootstrap's draws (Efron 1979)."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(value=values[0], low=float(low), high=float(high))


def calibration_table(summary: CalibrateSummary) -> Table:
    """As it is and tempered, side by side, with what tempering gains."""
    names = {
        "confidence": "mean confidence",
        "calibration_error": "ECE",
        "negative_log_likelihood": "NLL, nats",
    }
    accuracy = str(summary.accuracy)
    rows = [
        [text, *(str(side[name]) for side in (summary.as_it_is, summary.tempered, summary.gain))]
        for name, text in names.items()
    ]
    return Table(columns=["", "as it is", "tempered", "less by"], rows=[["accuracy", accuracy, accuracy, "—"], *rows])


def _page(config: CalibrateConfig, summary: CalibrateSummary) -> Page:
    names = {"as_it_is": "as it is", "tempered": f"temperature {summary.temperature.value:.3f}"}
    curves = [
        ReliabilityCurve(
            name=text,
            bins=[
                (one.confidence, Interval(label="", value=one.accuracy, low=one.accuracy_low, high=one.accuracy_high))
                for one in summary.bins[name]
            ],
            style="training" if name == "as_it_is" else "validation",
        )
        for name, text in names.items()
    ]
    return Page(
        title="Calibration of a teacher",
        facts={
            "dataset": f"{config.dataset}, {teacher_of(config.dataset)}",
            "people": config.human,
            "posts to fit on": f"{summary.num_fitted}",
            "posts to judge by": f"{summary.num_judged}",
            "temperature": str(summary.temperature),
        },
        tables=[calibration_table(summary)],
        figure=Figure(
            caption="How often the teacher is right where it is so sure (95 % intervals)",
            svg=reliability_chart(curves, description="Reliability of the teacher"),
        ),
    )
