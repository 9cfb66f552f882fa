"""The stage `clean`: instructions without duplicates, broken answers and evaluation items, and a count of each.

Input: `instructions`, an evolve artifact. Each step is a field of the recipe, and null switches it off. They are taken
in the order of `STEPS`: what judges a row alone comes before what judges it beside others, so that a row which goes
anyway never stands in the way of its better neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field

from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import ClozeTasks, ExerciseTasks, HarnessTasks
from tasks.benchmarks.evaluation_sets import Decontamination, EvaluationSet, Reasons, evaluation_sets
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, at_most

STEPS = (
    "length",
    "refusals",
    "truncated",
    "language",
    "decontamination",
    "exact_duplicates",
    "near_duplicates",
)
"""Fields of the recipe, in the order in which rows pass them."""
NOT_DECONTAMINATED = "fine_tuning.clean.recipe.not_decontaminated"
"""Where a profile says which sets are not compared with, for errors."""


class Length(Frozen):
    """Bounds on a conversation; None for no bound."""

    min_answer_chars: int | None = Field(1, ge=0)
    """Of every assistant turn, white space around it aside."""
    max_chars: int | None = Field(60_000, ge=1)
    """Of all turns together: about 15,000 tokens of English."""
    max_turns: int | None = Field(32, ge=2)
    """User and assistant turns together."""


class Language(Frozen):
    """Only rows in these languages."""

    allowed: tuple[str, ...] = Field(min_length=1)
    """ISO 639-1 codes, such as en or pt."""
    min_letters: int = Field(40, ge=1)
    """A row with fewer letters outside code blocks is kept: py3langid guesses on so few."""


class NearDuplicates(Frozen):
    """Rows whose sets of shingles are nearly equal; the first in the order of the file stays."""

    shingle_words: int = Field(5, ge=1)
    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of two rows' sets of shingles from which the later one is removed."""
    permutations: int = Field(128, ge=2)
    seed: int = Field(1, ge=0)
    """Of the permutations, which decide only which pairs are compared: see duplicates.py."""


class CleanRecipe(Frozen):
    """Which rows are removed."""

    exact_duplicates: Literal["drop"] | None = "drop"
    """Conversations that are equal but for case, white space and Unicode composition."""
    length: Length | None = Length()
    refusals: Literal["drop"] | None = "drop"
    """Rows in which an answer begins by declining."""
    truncated: Literal["drop"] | None = "drop"
    """Rows in which an answer ends in the middle."""
    language: Language | None = None
    decontamination: Decontamination | None = Decontamination()
    near_duplicates: NearDuplicates | None = NearDuplicates()
    evaluations: tuple[EvaluationSet, ...] = ()
    """Sets besides those of the profile's `assessment`, which are put in front of them: see `CleanConfig.against`."""
    not_decontaminated: Reasons = Field(default_factory=dict)
    """Evaluation set → why it is not read. The card repeats it."""


class CleanRuntime(Runtime):
    """Where evaluation sets are read."""

    mirror: str | None = None
    """A folder with copies of the hub's data sets, each at OWNER/NAME in its repository's layout. The hub is not asked
    for data then."""


class CleanGates(Gates):
    """When enough is left."""

    min_rows: int | None = Field(1, ge=0)
    max_removed_share: float | None = Field(0.5, ge=0, le=1)


class CleanConfig(StageConfig):
    """Block `fine_tuning.clean` of a profile."""

    recipe: CleanRecipe = CleanRecipe()
    runtime: CleanRuntime = CleanRuntime()
    gates: CleanGates = CleanGates()

    def against(self, tasks: Iterable[ExerciseTasks | ClozeTasks | HarnessTasks]) -> Self:
        """Itself with the sets that an evaluation reads, so that another list of them is another key.

        Raises:
            BadInputError: `not_decontaminated` names no such set.
        """
        recipe = self.recipe
        sets = evaluation_sets(tasks, recipe.evaluations, recipe.not_decontaminated, NOT_DECONTAMINATED)
        kept = sets if recipe.decontamination is not None else ()
        return self.model_copy(update={"recipe": recipe.model_copy(update={"evaluations": kept})})


def judge(metrics: Mapping[str, Any], gates: CleanGates) -> list[GateResult]:
    """Whether enough is left, and whether so much went that the source or a step must be looked at."""
    return [
        *at_least("min_rows", metrics.get("rows"), gates.min_rows, "Rows that are left to train on."),
        *at_most(
            "max_removed_share",
            metrics.get("removed_share"),
            gates.max_removed_share,
            "Share of the rows that cleaning removed; clean.json says which step took them, with examples.",
        ),
    ]


STAGE = Stage(name="clean", version=2, config=CleanConfig, judge=judge)
