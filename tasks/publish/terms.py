"""Which licence a distilled model carries, derived from what it was made of: never a fixed one.

The strictest licence among models and data is the model's own, and the notices of all of them go with it. Where two of
them cannot both be kept nothing is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.artifacts.errors import BadInputError
from tasks.publish.licenses import LICENSES, License
from tasks.publish.sources import LicensedSource


@dataclass(frozen=True)
class Terms:
    """What the published model carries."""

    license: str
    """For the card's metadata: an identifier of the hub, or `other`."""
    license_name: str | None
    license_link: str
    displays: tuple[str, ...]
    notices: tuple[str, ...]
    name_prefix: str


def derive_terms(sources: Sequence[LicensedSource]) -> Terms:
    """The terms of a model made of these sources; of equally strict licences the later name wins.

    Raises:
        BadInputError: a licence is not in the table, forbids the publication, or conflicts with another.
    """
    if not sources:
        raise BadInputError("a model made of nothing has no licence; publish one that has a lineage")
    found: dict[str, License] = {}
    for source in sources:
        found[source.license] = _known(source)
    _check_students(sources)
    _check_share_alike(sources)
    strictest = max(found, key=lambda name: (found[name].strictness, name))
    chosen = found[strictest]
    return Terms(
        license=strictest if chosen.on_hub else "other",
        license_name=None if chosen.on_hub else strictest,
        license_link=chosen.link,
        displays=tuple(dict.fromkeys(found[name].display for name in sorted(found) if found[name].display)),
        notices=tuple(_notice(name, sources) for name in sorted(found) if found[name].notice),
        name_prefix=_prefix(found),
    )


def _notice(license: str, sources: Sequence[LicensedSource]) -> str:
    names = dict.fromkeys(source.card_name for source in sources if source.license == license)
    return LICENSES[license].notice.format(name=", ".join(names))


def _known(source: LicensedSource) -> License:
    found = LICENSES.get(source.license)
    if found is None:
        raise BadInputError(
            f"{source.name} has the licence {source.license!r}, whose terms are not known here; publish without it, or "
            f"add its terms to tasks/publish/licenses.py (known: {', '.join(LICENSES)})"
        )
    if found.forbids:
        raise BadInputError(
            f"{source.name} has the licence {source.license}: {found.forbids}; make the model without it"
        )
    return found


def _check_students(sources: Sequence[LicensedSource]) -> None:
    for closed in (source for source in sources if LICENSES[source.license].own_models_only):
        for student in sources:
            if "student" in student.parts and student.license != closed.license:
                raise BadInputError(
                    f"{closed.name} has the licence {closed.license}, which allows its outputs to improve only models "
                    f"under it, and {student.name} is under {student.license}; take another teacher (Llama 3.1 and "
                    f"later allow it) or another student"
                )


def _check_share_alike(sources: Sequence[LicensedSource]) -> None:
    for shared in (source for source in sources if LICENSES[source.license].share_alike):
        for other in sources:
            terms = LICENSES[other.license]
            if other.license != shared.license and (terms.limits_use or terms.share_alike):
                raise BadInputError(
                    f"{shared.name} has the licence {shared.license}, which wants the model under that very licence, "
                    f"and {other.name} has {other.license}, whose terms the model must keep too; both cannot be kept, "
                    f"so make it without one of them"
                )


def _prefix(found: dict[str, License]) -> str:
    prefixes = {terms.name_prefix for terms in found.values() if terms.name_prefix}
    longest = max(prefixes, key=len, default="")
    if any(not longest.startswith(prefix) for prefix in prefixes):
        raise BadInputError(
            f"the licences want the model's name to begin with each of {', '.join(sorted(prefixes))}, which no name "
            f"does; make the model without one of them"
        )
    return longest


def check_names(repo_name: str, title: str, terms: Terms) -> None:
    """Refuses a model's name that does not begin as its licence asks.

    Raises:
        BadInputError: the repository's or the title does not.
    """
    prefix = terms.name_prefix
    name = repo_name.rpartition("/")[2]
    for where, given in (("repo_name", name), ("title", title)):
        if not _words(given).startswith(_words(prefix)):
            joined = f"{prefix.replace(' ', '-')}-" if where == "repo_name" else f"{prefix} "
            raise BadInputError(
                f'a model made with {prefix} must have a name that starts with "{prefix}"; call it {joined}{given} in '
                f"publish.recipe.{where}"
            )


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")
