"""A self-contained HTML document: a template of a package within the frame that all pages share."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup


def render_document(package: str, template: str, *, title: str, shows_pictures: bool = False, **values: Any) -> str:
    """Fill `template`, a file of `package` that extends `document.html`: no script, no font, nothing from elsewhere.

    What is put in is escaped. A browser takes the one style sheet, by its hash, and where the page `shows_pictures`
    those that are in it. All else it refuses, so that a hole in the escaping of what strangers posted could still run
    and load nothing.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ""), jinja2.PackageLoader("xmodal.report", "")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = files("xmodal.report").joinpath("page.css").read_text(encoding="utf-8")
    style_hash = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = ["default-src 'none'", *(["img-src data:"] if shows_pictures else []), f"style-src 'sha256-{style_hash}'"]
    return environment.get_template(template).render(
        title=title,
        css=Markup(css),
        policy=Markup("; ".join([*policy, "base-uri 'none'", "form-action 'none'"])),
        **values,
    )
