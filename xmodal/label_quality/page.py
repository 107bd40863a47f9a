"""The page of a comparison: facts, tables and a figure as one self-contained HTML document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xmodal.report.document import render_document


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text; the first of each row names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart and what it shows."""

    caption: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that is shown."""

    title: str
    facts: Mapping[str, str]
    tables: Sequence[Table]
    figure: Figure


def render(page: Page) -> str:
    """The page, which needs nothing else; its policy lets a browser load nothing but its own style sheet."""
    return render_document("xmodal.label_quality", "comparison.html", title=page.title, page=page)


def table_text(table: Table) -> str:
    """The table for a terminal."""
    lines = [list(table.columns), *(list(row) for row in table.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
