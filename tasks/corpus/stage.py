"""Text and conversations as token rows: rendered once, tokenised once, split into training and held-out documents.

With `decontamination` no document goes in, trained on or held out, that shares text with an item of an evaluation.

Inputs: "tokenizer" (a model artifact) and, if a source is `instructions`, "instructions" (of evolve or clean).
A data set is identified by its commit, files and the library's text by their content (`with_identity`).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import content_digest, file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.pinned import Pinned
from tasks.benchmarks.declare import ClozeTasks, ExerciseTasks, HarnessTasks
from tasks.benchmarks.evaluation_sets import Decontamination, EvaluationSet, Reasons, evaluation_sets
from tasks.exercises import KINDS
from tasks.exercises.fields import Difficulty, Kinds
from tasks.exercises.library_code import library_code
from tasks.exercises.library_text import documents_sha256, library_documents
from tasks.modeling.template_date import IsoDate
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, recipe_with

_SETTING = "this corpus source"


class _Fields(Frozen):
    """Where a record keeps its document: as plain text, or as a conversation."""

    text_field: str | None = None
    messages_field: str | None = None
    """A list of {role, content}, or of ShareGPT's {from, value}."""

    @model_validator(mode="after")
    def _one_field(self) -> Self:
        if (self.text_field is None) == (self.messages_field is None):
            raise ValueError("set exactly one of text_field and messages_field")
        return self


class HubSource(_Fields):
    """A data set on the Hugging Face hub, at one commit."""

    kind: Literal["hub"] = "hub"
    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """A commit; a branch or a tag may move."""
    limit: int = Field(ge=1)
    """At most this many documents, the first ones of the split."""

    def with_identity(self) -> Self:
        """Itself: a commit is an identity."""
        return self


class FilesSource(_Fields, Pinned):
    """Local files. A text file is one document; a record of the other formats is one."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(min_length=1)
    """Paths or globs; what they match is read in sorted order."""
    format: Literal["json", "jsonl", "parquet", "text"]
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _text_files_are_text(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("format") == "text" and "messages_field" not in values:
            return {**values, "text_field": values.get("text_field", "text")}
        return values

    @model_validator(mode="after")
    def _text_has_no_messages(self) -> Self:
        if self.format == "text" and self.text_field != "text":
            raise ValueError("a text file has the one field text; leave text_field and messages_field out")
        return self

    def files(self) -> list[Path]:
        """The files, sorted.

        Raises:
            BadInputError: a path matches nothing.
        """
        found: set[Path] = set()
        for pattern in self.paths:
            matches = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
            if not any(path.is_file() for path in matches):
                raise BadInputError(f"{pattern} matches no file; correct the paths of this corpus source")
            found.update(path for path in matches if path.is_file())
        return sorted(found)

    def sha256(self) -> str:
        """Hash over the files' names and contents."""
        return content_digest((path.name, file_sha256(path)) for path in self.files())

    def with_identity(self) -> Self:
        """With the hash of the files as they are now.

        Raises:
            BadInputError: another hash is given.
        """
        return self.pinned(self.sha256(), ", ".join(self.paths), _SETTING)


class StdlibDocsSource(Pinned):
    """The language reference and the docstrings of the Python that runs this; other versions have other text."""

    kind: Literal["stdlib_docs"] = "stdlib_docs"
    max_bytes: int = Field(ge=1)
    """About 1,700,000 are there."""

    def texts(self) -> tuple[str, ...]:
        """The documents."""
        return library_documents(self.max_bytes)

    def with_identity(self) -> Self:
        """With the hash of the documents.

        Raises:
            BadInputError: another hash is given.
        """
        return self.pinned(documents_sha256(self.texts()), "the text of Python's standard library", _SETTING)


class StdlibCodeSource(Pinned):
    """The functions and classes of that Python's standard library, without their docstrings."""

    kind: Literal["stdlib_code"] = "stdlib_code"
    max_bytes: int = Field(ge=1)
    """About 6,400,000 are there."""

    def texts(self) -> tuple[str, ...]:
        """The documents."""
        return library_code(self.max_bytes)

    def with_identity(self) -> Self:
        """With the hash of the documents.

        Raises:
            BadInputError: another hash is given.
        """
        return self.pinned(documents_sha256(self.texts()), "the code of Python's standard library", _SETTING)


class ExercisesSource(Frozen):
    """Generated exercises of the train split, as conversations of a question and an answer."""

    kind: Literal["exercises"] = "exercises"
    kinds: Kinds = KINDS
    count: int = Field(ge=1)
    """Of each kind."""
    seed: int = 0
    difficulty: Difficulty | None = None
    """None takes the three in turns."""

    def with_identity(self) -> Self:
        """Itself: the exercises are a function of these fields."""
        return self


class InstructionsSource(Frozen):
    """The conversations of the input "instructions"."""

    kind: Literal["instructions"] = "instructions"
    limit: int | None = Field(None, ge=1)

    def with_identity(self) -> Self:
        """Itself: the input's key is part of the corpus' key."""
        return self


Source = Annotated[
    HubSource | FilesSource | StdlibDocsSource | StdlibCodeSource | ExercisesSource | InstructionsSource,
    Field(discriminator="kind"),
]


class CorpusRecipe(Frozen):
    """Which documents, and how they become rows."""

    sources: tuple[Source, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=8)
    """The longest row."""
    overlong_text: Literal["split", "drop", "error"] = "split"
    """A text over `max_tokens` becomes several rows, or none, or ends the stage."""
    overlong_chat: Literal["drop", "error"] = "drop"
    """A conversation is never cut: its answer would lose its end."""
    heldout_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents kept from training, decided by the hash of their text."""
    max_rows: int | None = Field(None, ge=1)
    """At most this many training rows. Held-out rows are never cut: every tokenizer holds out the same documents."""
    seed: int = 0
    """Orders the rows and chooses the held-out documents."""
    template_date: IsoDate
    """An ISO date, such as 2024-07-26: what a chat template prints as today's date."""


class CorpusDecontamination(Decontamination):
    """Which documents are left out, and what they are compared with: the rule is that of `clean`."""

    evaluations: tuple[EvaluationSet, ...] = ()
    """Sets besides those of the profile's `assessment`, which are put in front of them: see `CorpusConfig.against`."""
    not_decontaminated: Reasons = Field(default_factory=dict)
    """Evaluation set → why it is not read. The card repeats it."""


class DecontaminatedCorpusRecipe(CorpusRecipe):
    """A corpus without items of evaluations. A class of its own: others keep the keys of CorpusRecipe."""

    decontamination: CorpusDecontamination


def recipe_of(values: Mapping[str, Any]) -> CorpusRecipe:
    """The recipe that these fields are of; a decontamination of null is none."""
    if values.get("decontamination") is not None:
        return DecontaminatedCorpusRecipe.model_validate(values)
    return CorpusRecipe.model_validate({name: each for name, each in values.items() if name != "decontamination"})


class CorpusRuntime(Runtime):
    """Where evaluation sets are read, if there is a decontamination."""

    mirror: str | None = None
    """A folder with copies of the hub's data sets, each at OWNER/NAME in its repository's layout. The hub is asked only
    for what is not in it, and if no source is on the hub, for no data."""


class CorpusGates(Gates):
    """When a corpus is good enough to be read by a teacher."""

    min_train_targets: int | None = 1
    min_heldout_rows: int | None = 1


class CorpusConfig(StageConfig):
    """The config block of `corpus`."""

    recipe: SerializeAsAny[CorpusRecipe]
    runtime: CorpusRuntime = CorpusRuntime()
    gates: CorpusGates = CorpusGates()

    @field_validator("recipe", mode="before")
    @classmethod
    def _decontaminated(cls, values: Any) -> Any:
        return recipe_with("decontamination", values, recipe_of)

    def against(self, tasks: Iterable[ExerciseTasks | ClozeTasks | HarnessTasks]) -> Self:
        """Itself with the sets that an evaluation reads, if it is decontaminated: another list of them is another key.

        Raises:
            BadInputError: `not_decontaminated` names no such set.
        """
        recipe = self.recipe
        if not isinstance(recipe, DecontaminatedCorpusRecipe):
            return self
        told = recipe.decontamination
        where = "corpus.recipe.decontamination.not_decontaminated"
        sets = evaluation_sets(tasks, told.evaluations, told.not_decontaminated, where)
        compared = recipe.model_copy(update={"decontamination": told.model_copy(update={"evaluations": sets})})
        return self.model_copy(update={"recipe": compared})


def judge(metrics: Mapping[str, Any], gates: CorpusGates) -> list[GateResult]:
    """Whether there is enough to train on and enough to measure with."""
    return [
        *at_least(
            "min_train_targets", metrics.get("train_targets"), gates.min_train_targets, "tokens that training predicts"
        ),
        *at_least(
            "min_heldout_rows", metrics.get("heldout_rows"), gates.min_heldout_rows, "rows that training never sees"
        ),
    ]


STAGE = Stage(name="corpus", version=2, config=CorpusConfig, judge=judge)
