"""The paper's table, beside what was evaluated here."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from shards.errors import ConfigError, UserError
from shards.json_object import without_nan
from xmodal.benchmarks import INSTALL_FROM_CLONE, known_benchmarks, load_definition
from xmodal.evaluation.scores_file import Scores, read_scores
from xmodal.evaluation.table import aligned, markdown_lines
from xmodal.published import AGREEMENTS, PUBLISHED, PublishedModel, pull_command, pulled_folder


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """What is put beside the published numbers."""

    scores: list[str] = field(default_factory=list)
    """JSON files of `xmodal evaluate --json`. One of a single student is named after it: ViT_B32.json."""
    root: str = ""
    """Folder that the benchmarks' paths start at, by default the working folder; to say which are not here."""
    format: Literal["text", "markdown", "csv", "json"] = "text"
    """Of the table that is printed."""

    def __post_init__(self) -> None:
        stems = [Path(file).stem for file in self.scores]
        if len(set(stems)) < len(stems):
            raise ConfigError("scores", self.scores, "must have different file names: they name the students")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model on one benchmark; accuracies in percent, None where there is none."""

    row: str | None
    """Of the paper's table."""
    model: str
    benchmark: str
    published: float | None
    ours: float | None
    low: float | None
    high: float | None
    is_partial: bool
    """Whether pictures of the benchmark were missing here, or could not be decoded."""

    @property
    def difference(self) -> float | None:
        """Ours less the published one."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def is_outside(self) -> bool:
        """Whether the published accuracy lies outside of the interval of ours."""
        if self.published is None or self.low is None or self.high is None:
            return False
        # It was rounded to one digit.
        return not self.low - 0.05 <= self.published <= self.high + 0.05


def paper_table(config: TableConfig) -> str:
    """The table as it is to be printed. Raises UserError for a file that cannot be read or is something else."""
    scores = read_all_scores(config.scores)
    cells = paper_cells(scores)
    if config.format == "csv":
        return _csv(cells)
    missing = what_is_missing(cells, config.root)
    if config.format == "json":
        rows = [_to_json(cell) for of_model in cells for cell in of_model]
        return json.dumps(without_nan({"cells": rows, "missing": missing}), indent=2)
    return (_markdown if config.format == "markdown" else _text)(cells, missing)


def read_all_scores(files: Sequence[str]) -> Scores:
    """What several files of `xmodal evaluate --json` hold together.

    Raises UserError as `read_scores` does, and where two have numbers of one student on one benchmark.
    """
    scores: Scores = {}
    file_of: dict[tuple[str, str], str] = {}
    for file in files:
        for student, by_benchmark in read_scores(file).items():
            for benchmark, metrics in by_benchmark.items():
                if "accuracy" not in metrics:
                    raise UserError(f"{file}: {student}: {benchmark}: has no accuracy", "evaluate it again")
                other = file_of.setdefault((student, benchmark), file)
                if other != file:
                    raise UserError(
                        f"{file}: has {student} on {benchmark}, and so has {other}",
                        "give one of them; two students of one name are told apart where one call evaluates both",
                    )
                scores.setdefault(student, {})[benchmark] = metrics
    return scores


def paper_cells(scores: Scores) -> list[list[Cell]]:
    """A list for each model: the paper's rows, with our numbers where one was evaluated here, then all other students.

    Each holds a cell for each benchmark of the table, and for each other one that something was evaluated on.
    """
    others = (benchmark for by_benchmark in scores.values() for benchmark in by_benchmark)
    benchmarks = list(dict.fromkeys([*AGREEMENTS, *others]))
    ours: dict[str | None, list[str]] = {}
    for name in scores:
        ours.setdefault(_published_as(name), []).append(name)
    rows: list[tuple[str, PublishedModel | None]] = []
    for model in sorted(PUBLISHED.values(), key=lambda model: model.row or "~"):
        rows += [(name, model) for name in ours.get(model.name, [model.name] if model.row else [])]
    rows += [(name, None) for name in ours.get(None, [])]
    return [
        [_cell(name, model, benchmark, scores.get(name, {}).get(benchmark)) for benchmark in benchmarks]
        for name, model in rows
    ]


def what_is_missing(cells: Sequence[Sequence[Cell]], root: str = "") -> list[str]:
    """For published numbers without one of ours: what is not here, and what to do."""
    lacking = {
        of_model[0].model: [cell.benchmark for cell in of_model if cell.ours is None and cell.published is not None]
        for of_model in cells
    }
    evaluated = {
        of_model[0].model: [cell.benchmark for cell in of_model if cell.ours is not None] for of_model in cells
    }
    lines = []
    known = known_benchmarks()
    for benchmark in dict.fromkeys(name for names in lacking.values() for name in names):
        if benchmark not in known:
            lines.append(f"{benchmark}: its definition is not here: {INSTALL_FROM_CLONE}")
            continue
        definition = load_definition(benchmark, root=root)
        if not os.path.exists(definition.labels):
            lines.append(f"{benchmark}: {definition.labels} is not here; get it: {definition.source}")
    for model, benchmarks in lacking.items():
        if benchmarks and model in PUBLISHED and not pulled_folder(model).is_dir():
            lines.append(f"{model}: its weights are not here: {pull_command(model)}")
        elif benchmarks and evaluated[model]:
            # A second file of a single student would need the name of the first, and take its place.
            together = " ".join([*evaluated[model], *benchmarks])
            lines.append(f"{model}: not evaluated on {', '.join(benchmarks)}: make its file anew, with -b {together}")
        elif benchmarks:
            # A file of a single student does not say whose it is: its name does.
            lines.append(
                f"{model}: not evaluated: xmodal evaluate -m {model} -b {' '.join(benchmarks)} --json {model}.json"
            )
    return lines


def _published_as(name: str) -> str | None:
    """The published model that a student is, by its own name or by that of our recipe (`paper_3_5`) in its path."""
    known = {name: name for name in PUBLISHED}
    for model in PUBLISHED.values():
        # Of two models with one recipe, the first: ViT_B32, which has a row, before merged_T4SA, which has none.
        if model.recipe:
            known.setdefault(model.recipe, model.name)
    return next((known[part] for part in name.split("/") if part in known), None)


def _cell(name: str, model: PublishedModel | None, benchmark: str, metrics: Mapping[str, float | None] | None) -> Cell:
    def percent(metric: str) -> float | None:
        value = (metrics or {}).get(metric)
        return None if value is None else 100 * value

    return Cell(
        row=model.row if model else None,
        model=name,
        benchmark=benchmark,
        published=model.accuracy.get(benchmark) if model else None,
        ours=percent("accuracy"),
        low=percent("accuracy_low"),
        high=percent("accuracy_high"),
        is_partial=bool((metrics or {}).get("partial")),
    )


def _to_json(cell: Cell) -> dict[str, Any]:
    return {**asdict(cell), "difference": cell.difference, "is_outside": cell.is_outside}


def _csv(cells: Sequence[Sequence[Cell]]) -> str:
    file = io.StringIO(newline="")
    rows = [_to_json(cell) for of_model in cells for cell in of_model]
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return file.getvalue().rstrip("\n")


def _lines(cells: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """The header, then a line for each model."""
    header = ["row", "model", *(cell.benchmark for cell in cells[0])]
    return [header, *([of_one[0].row or "—", of_one[0].model, *map(_cell_text, of_one)] for of_one in cells)]


def _cell_text(cell: Cell) -> str:
    """`86.5 / 86.2 -0.3 [83.9, 88.4]`: published, ours, the difference, the interval of ours."""
    published = "—" if cell.published is None else f"{cell.published:.1f}"
    if cell.ours is None:
        return f"{published} / —" if cell.published is not None else "—"
    difference = "" if cell.difference is None else f" {cell.difference:+z.1f}"
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return f"{published} / {cell.ours:.1f}{difference}{interval}{'!' * cell.is_outside}{'*' * cell.is_partial}"


def _notes(cells: Sequence[Sequence[Cell]]) -> list[str]:
    notes = ["accuracy in percent, published / ours, their difference, and the 95 % interval of ours"]
    if any(cell.is_outside for of_model in cells for cell in of_model):
        notes.append("! the published accuracy lies outside of the interval")
    if any(cell.is_partial for of_model in cells for cell in of_model):
        notes.append("* partial: pictures of the benchmark were missing, or could not be decoded")
    return notes


def _text(cells: Sequence[Sequence[Cell]], missing: Sequence[str]) -> str:
    lines = _lines(cells)
    rows = aligned(lines, num_names=len(lines[0]))
    return "\n".join([*rows, "", *_notes(cells), *([""] if missing else []), *missing])


def _markdown(cells: Sequence[Sequence[Cell]], missing: Sequence[str]) -> str:
    lines = _lines(cells)
    rows = markdown_lines(lines, num_names=len(lines[0]))
    notes = [note.replace("* partial", "\\* partial") for note in _notes(cells)]
    return "\n".join([*rows, "", *(f"{note}  " for note in notes), *(f"- {line}" for line in missing)])
