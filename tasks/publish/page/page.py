"""The report of a run as one HTML file that opens with no network: no script, no font, no image from elsewhere.

A Content-Security-Policy in the page forbids what its absence already excludes. Everything that comes from a store or
a profile goes through jinja2's or markupsafe's escaping.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tasks.publish.page.contents import Report
from tasks.publish.page.dag import anchor

_FOLDER = Path(__file__).parent


def render_page(report: Report) -> str:
    """The report as a page."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        profile=report.profile,
        store=report.store,
        sections=report.sections,
        glance=report.glance,
        anchor=anchor,
        made=report.made,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
    )
