"""Where a comparison's numbers and page go."""

from collections.abc import Callable
from typing import Any

from xmodal.evaluation.output_files import check_output_file, write_html, write_json
from xmodal.label_quality.page import Page, render


def check_outputs(json_file: str | None, html_file: str | None) -> None:
    """Raise UserError, before any work, for a file that cannot be written."""
    check_output_file("json", json_file)
    check_output_file("output", html_file)


def write_outputs(
    json_file: str | None, numbers: dict[str, Any], html_file: str | None, page: Callable[[], Page]
) -> None:
    """Write what was asked for, each file in one step."""
    if json_file is not None:
        write_json(json_file, numbers)
    if html_file is not None:
        write_html(html_file, render(page()))
