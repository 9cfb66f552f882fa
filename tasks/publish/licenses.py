"""Which licence a distilled model must carry, derived from what it was made of: never a fixed one.

The strictest licence among teachers, student and data names the model's own; the notices of all of them go with it.
A licence that is not in the table is refused, since its terms cannot be known here. This is bookkeeping, not advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tasks.artifacts.errors import BadInputError


class Licensed(Protocol):
    """A teacher, a student or a data set."""

    @property
    def name(self) -> str: ...

    @property
    def license(self) -> str: ...


@dataclass(frozen=True)
class License:
    """What one licence asks of a model made with it."""

    strictness: int
    link: str
    notice: str = ""
    """Must stand in the card and in the file NOTICE."""
    name_prefix: str = ""
    """Must begin the model's name."""
    on_hub: bool = True
    """Whether the hub knows this identifier; else the card says `other` and names it."""


def _llama(version: str, path: str) -> License:
    return License(
        strictness=5,
        link=f"https://www.llama.com/{path}/license/",
        notice=(
            f"Built with Llama. Llama {version} is licensed under the Llama {version} Community License, Copyright © "
            f"Meta Platforms, Inc. All Rights Reserved. Use must comply with its Acceptable Use Policy "
            f"(https://www.llama.com/{path}/use-policy/). Above 700 million monthly users Meta must be asked."
        ),
        name_prefix="Llama",
    )


LICENSES: dict[str, License] = {
    "cc0-1.0": License(0, "https://creativecommons.org/publicdomain/zero/1.0/"),
    "mit": License(1, "https://opensource.org/license/mit"),
    "bsd-3-clause": License(2, "https://opensource.org/license/bsd-3-clause"),
    "psf-2.0": License(0, "https://docs.python.org/3/license.html", on_hub=False),
    "apache-2.0": License(3, "https://www.apache.org/licenses/LICENSE-2.0"),
    "odc-by": License(0, "https://opendatacommons.org/licenses/by/1-0/"),
    "cc-by-4.0": License(0, "https://creativecommons.org/licenses/by/4.0/"),
    "qwen": License(
        strictness=4,
        link="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        notice=(
            "Improved using Qwen. Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All "
            "Rights Reserved. Above 100 million monthly users Alibaba Cloud must be asked."
        ),
        on_hub=False,
    ),
    "llama3": _llama("3", "llama3"),
    "llama3.1": _llama("3.1", "llama3_1"),
    "llama3.2": _llama("3.2", "llama3_2"),
    "llama3.3": _llama("3.3", "llama3_3"),
}


@dataclass(frozen=True)
class Terms:
    """What the published model carries."""

    license: str
    """For the card's metadata: an identifier of the hub, or `other`."""
    license_name: str | None
    license_link: str
    notices: tuple[str, ...]
    name_prefix: str


def derive_terms(parts: Iterable[Licensed]) -> Terms:
    """The terms of a model made of these parts; the strictest wins, and of equally strict ones the later name.

    Raises:
        BadInputError: a licence is not in the table, or two of them want different beginnings of the name.
    """
    found: dict[str, License] = {}
    for part in parts:
        if part.license not in LICENSES:
            raise BadInputError(
                f"{part.name} has the licence {part.license!r}, whose terms are not known here; publish without it, or "
                f"add its terms to tasks/publish/licenses.py (known: {', '.join(LICENSES)})"
            )
        found[part.license] = LICENSES[part.license]
    if not found:
        raise BadInputError("a model made of nothing has no licence; name its student and teachers")
    strictest = max(found, key=lambda name: (found[name].strictness, name))
    prefixes = {terms.name_prefix for terms in found.values() if terms.name_prefix}
    if len(prefixes) > 1:
        raise BadInputError(f"the licences want the model's name to begin with each of {sorted(prefixes)}")
    chosen = found[strictest]
    return Terms(
        license=strictest if chosen.on_hub else "other",
        license_name=None if chosen.on_hub else strictest,
        license_link=chosen.link,
        notices=tuple(found[name].notice for name in sorted(found) if found[name].notice),
        name_prefix=next(iter(prefixes), ""),
    )


def check_name(repo_name: str, terms: Terms) -> None:
    """Raises BadInputError if the model's name does not begin as its licence asks."""
    name = repo_name.rpartition("/")[2]
    if not name.startswith(terms.name_prefix):
        raise BadInputError(
            f"a model trained on outputs of {terms.name_prefix} must have a name that starts with "
            f'"{terms.name_prefix}"; call it {terms.name_prefix}-{name} in publish.recipe.repo_name'
        )
