"""Two datasets of the same posts, labelled by two teachers → how often they agree."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shards.errors import ConfigError, UserError
from xmodal.label_quality.agreement import Agreement, agreement_of
from xmodal.label_quality.labels_of_dataset import first_of_each, read_labels, soft_labels_of, teacher_of
from xmodal.label_quality.outputs import check_outputs, write_outputs
from xmodal.label_quality.page import Figure, Page, Table
from xmodal.labels import CLASSES
from xmodal.report.charts import matrix_chart


@dataclass(frozen=True, kw_only=True)
class AgreeConfig:
    """Which datasets are compared."""

    first: str
    """Folder of a finished dataset."""
    second: str
    """Folder of another one, of the same posts or pictures."""
    by: Literal["key", "post_id", "sha256"] = "key"
    """What makes two samples the same: `key` is post and picture number; `post_id` counts every post once, by its first
    picture; `sha256` is the picture's bytes, whatever post they came with."""
    json: str | None = None
    """File for the numbers as JSON."""
    output: str | None = None
    """HTML file for the table and the figure."""

    def __post_init__(self) -> None:
        for key in ("first", "second"):
            if not getattr(self, key):
                raise ConfigError(key, getattr(self, key), "must name a folder")


@dataclass(frozen=True, kw_only=True)
class AgreeSummary:
    """How two datasets agree."""

    agreement: Agreement
    only_first: int
    """Samples that the second dataset has none for."""
    only_second: int

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        flips_of_class = dict(zip(CLASSES, self.agreement.flips_of_class.tolist(), strict=True))
        return {
            "samples": self.agreement.num_samples,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "flips": self.agreement.flips,
            "kappa": self.agreement.kappa,
            "flips_of_class": flips_of_class,
            "classes": list(CLASSES),
            "confusion": self.agreement.confusion.tolist(),
        }


def agree(config: AgreeConfig) -> AgreeSummary:
    """Compare the labels of what both datasets have. Of equal names in one dataset the smallest key counts.

    Raises UserError for a dataset that cannot be read, and where they have nothing in common.
    """
    check_outputs(config.json, config.output)
    tables = [read_labels(dataset, [config.by]) for dataset in (config.first, config.second)]
    (first_names, first_places), (second_names, second_places) = (first_of_each(table[config.by]) for table in tables)
    _, in_first, in_second = np.intersect1d(first_names, second_names, assume_unique=True, return_indices=True)
    if not len(in_first):
        raise UserError(
            f"{config.first}, {config.second}: no {config.by} is in both",
            "give datasets of the same posts, or --by sha256",
        )
    first, second = (soft_labels_of(table) for table in tables)
    summary = AgreeSummary(
        agreement=agreement_of(first[first_places[in_first]], second[second_places[in_second]]),
        only_first=len(first_names) - len(in_first),
        only_second=len(second_names) - len(in_second),
    )
    write_outputs(config.json, summary.to_json(), config.output, lambda: _page(config, summary))
    return summary


def agreement_table(agreement: Agreement) -> Table:
    """The confusion matrix with the shares of flips, one row a class of the first teacher."""
    rows = [
        [name, *(f"{count}" for count in counts), _percent(flips)]
        for name, counts, flips in zip(CLASSES, agreement.confusion.tolist(), agreement.flips_of_class, strict=True)
    ]
    sums = [f"{count}" for count in agreement.confusion.sum(axis=0).tolist()]
    return Table(
        columns=["first \\ second", *CLASSES, "flips"], rows=[*rows, ["all", *sums, _percent(agreement.flips)]]
    )


def _percent(share: float) -> str:
    return "—" if np.isnan(share) else f"{100 * share:.1f} %"


def _page(config: AgreeConfig, summary: AgreeSummary) -> Page:
    agreement = summary.agreement
    return Page(
        title="Agreement of two teachers",
        facts={
            "first": f"{config.first}, {teacher_of(config.first)}",
            "second": f"{config.second}, {teacher_of(config.second)}",
            "same by": config.by,
            "in both": f"{agreement.num_samples}",
            "flips": _percent(agreement.flips),
            "kappa": f"{agreement.kappa:.3f}",
        },
        tables=[agreement_table(agreement)],
        figure=Figure(
            caption="Share of each class of the first teacher (rows) by what the second says",
            svg=matrix_chart(agreement.confusion.tolist(), CLASSES, description="Confusion of two teachers"),
        ),
    )
