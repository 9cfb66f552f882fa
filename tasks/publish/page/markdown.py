"""The same report as Markdown: the page's sections without their drawings, whose numbers stand in tables too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tasks.publish.page.blocks import Details, Figure, Figures, Grid, Listing, Note
from tasks.publish.page.contents import Report
from tasks.publish.tables import plain


def render_markdown(report: Report) -> str:
    """The report as a Markdown document."""
    parts = [f"# Run of the profile {plain(report.profile)}"]
    told = [f"- {name}: {value}" + (f" ({remark})" if remark else "") for name, value, remark in report.glance]
    parts.append("\n".join(map(plain, told)))
    for section in report.sections:
        parts.append(f"## {plain(section.title)}")
        parts += [part for block in section.blocks for part in _block(block)]
    return "\n\n".join(parts) + "\n"


def _block(block: object) -> Iterator[str]:
    match block:
        case Note():
            yield plain(block.text)
        case Grid() if block.table.rows:
            yield f"**{plain(block.caption)}**"
            yield block.table.markdown()
        case Listing():
            # A fence is longer than any run of backticks in what it holds.
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
            yield f"{fence}\n{block.text.rstrip()}\n{fence}"
        case Details():
            yield f"### {plain(block.summary)} ({plain(block.aside)})"
            for part in block.blocks:
                yield from _block(part)
        case Figures():
            yield _drawn(block.figures, block.title)
        case Figure():
            yield _drawn((block,), "")


def _drawn(figures: Sequence[Figure], title: str) -> str:
    told = "; ".join(
        f"{figure.title} ({figure.caption})" if figure.title and figure.caption else figure.title or figure.caption
        for figure in figures
    )
    return f"*Drawn on the HTML page{plain(f' for {title}' if title else '')}: {plain(told).rstrip('.')}.*"
