"""What a document of the repository links to, or shows, stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def documents() -> list[str]:
    folders = ("configs", "flows", "infra", "tasks", "tests")
    found = [*CHECKOUT.glob("*.md"), *(file for folder in folders for file in (CHECKOUT / folder).rglob("*.md"))]
    return sorted(str(file.relative_to(CHECKOUT)) for file in found)


def links(text: str) -> list[str]:
    """Targets inside the repository, without what stands in code."""
    prose = _INLINE_CODE.sub("", _FENCED.sub("", text))
    return [link for link in _LINK.findall(prose) if "://" not in link and not link.startswith(("#", "mailto:"))]


def test_what_counts_as_a_link() -> None:
    text = "[a](b.md#part) ![c](d.png) [e](https://f) [g](#h) `[i](j)`\n```\n[k](l)\n```\n"
    assert links(text) == ["b.md#part", "d.png"]


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: str) -> None:
    file = CHECKOUT / document
    missing = [link for link in links(file.read_text()) if not (file.parent / link.partition("#")[0]).exists()]
    assert not missing
