"""The stage `clean`: instructions without duplicates, broken answers and evaluation items, and a count of each.

Input: `instructions`, an evolve artifact. Each step is a field of the recipe, and null switches it off. They are taken
in the order of `STEPS`: what judges a row alone comes before what judges it beside others, so that a row which goes
anyway never stands in the way of its better neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import ExerciseTasks, HarnessTasks
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
EXERCISES = "exercises"
"""The name of all generated exercises among evaluation sets."""


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


class Decontamination(Frozen):
    """Rows that share text with an item of an evaluation."""

    ngram_words: int = Field(13, ge=2)
    """A row goes if so many words in a row stand in an item's prompt or answer. 13 as for GPT-3 and The Pile."""
    min_whole_words: int = Field(8, ge=1)
    """Texts of items from here up to `ngram_words` are looked for whole; shorter prompts only as a whole user turn."""


class HarnessSet(Frozen):
    """All documents of a task or group of the harness, whatever number of them is evaluated."""

    type: Literal["lm_eval"] = "lm_eval"
    name: str = Field(min_length=1)


EvaluationSet = Annotated[ExerciseTasks | HarnessSet, Field(discriminator="type")]


def set_name(evaluation: ExerciseTasks | HarnessSet) -> str:
    """What `not_decontaminated`, the funnel and the card call a set."""
    return evaluation.name if isinstance(evaluation, HarnessSet) else EXERCISES


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
    not_decontaminated: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
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

    def against(self, tasks: Iterable[ExerciseTasks | HarnessTasks]) -> Self:
        """Itself with the sets that an evaluation reads, so that another list of them is another key.

        Of a harness task only the name counts: its documents are the same whatever is measured on them.

        Raises:
            BadInputError: `not_decontaminated` names no such set.
        """
        recipe = self.recipe
        sets = [HarnessSet(name=task.name) if isinstance(task, HarnessTasks) else task for task in tasks]
        sets += [extra for extra in recipe.evaluations if extra not in sets]
        names = [set_name(each) for each in sets]
        for name in recipe.not_decontaminated:
            if name not in names:
                raise BadInputError(
                    f"fine_tuning.clean.recipe.not_decontaminated names {name!r}, which is no evaluation set of the "
                    f"profile; it has {', '.join(dict.fromkeys(names))}"
                )
        kept = tuple(sets) if recipe.decontamination is not None else ()
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
