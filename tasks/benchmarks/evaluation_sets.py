"""The evaluation sets that training text is compared with, and when a text counts as one of their items.

Imports no harness: stages that compare declare themselves with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import (
    ClozeTasks,
    ExerciseTasks,
    HarnessTasks,
    Revision,
    kind_of_tasks,
    revision_of,
)

EXERCISES = "exercises"
"""The name of all generated exercises among evaluation sets."""


class Decontamination(Frozen):
    """Text shared with an item of an evaluation."""

    ngram_words: int = Field(13, ge=2)
    """A row goes if so many words in a row stand in an item's prompt or answer. 13 as for GPT-3 and The Pile."""
    min_whole_words: int = Field(8, ge=1)
    """Texts of items from here up to `ngram_words` are looked for whole; shorter prompts only as a whole user turn."""


class HarnessSet(Frozen):
    """All documents of a task or group of the harness, whatever number of them is evaluated."""

    type: Literal["lm_eval"] = "lm_eval"
    name: str = Field(min_length=1)


class PinnedHarnessSet(HarnessSet):
    """One whose data are of a commit. A class of its own: without one the keys are those of HarnessSet."""

    revision: Revision


EvaluationSet = Annotated[
    Annotated[ExerciseTasks, Tag("exercises")]
    | Annotated[PinnedHarnessSet, Tag("lm_eval_pinned")]
    | Annotated[HarnessSet, Tag("lm_eval")],
    Discriminator(kind_of_tasks),
]
Reasons = dict[str, Annotated[str, Field(min_length=1)]]
"""Evaluation set → why it is not read."""


def set_name(evaluation: ExerciseTasks | HarnessSet) -> str:
    """What `not_decontaminated`, the funnel and the card call a set."""
    return evaluation.name if isinstance(evaluation, HarnessSet) else EXERCISES


def set_revision(evaluation: HarnessSet) -> str | None:
    """The commit that the set's data are of, None where none is stated."""
    return evaluation.revision if isinstance(evaluation, PinnedHarnessSet) else None


def evaluation_sets(
    tasks: Iterable[ExerciseTasks | ClozeTasks | HarnessTasks],
    more: Iterable[ExerciseTasks | HarnessSet],
    left_out: Mapping[str, str],
    where: str,
) -> tuple[ExerciseTasks | HarnessSet, ...]:
    """The sets that an evaluation of `tasks` reads, then those of `more`, each once.

    Of a harness task only name and revision count: its documents are the same whatever is measured on them. Cloze items
    are none: their texts are held out of the corpus.

    Raises:
        BadInputError: `left_out`, which stands in the profile at `where`, names no such set.
    """
    compared = [task for task in tasks if not isinstance(task, ClozeTasks)]
    sets = [_set_of(task) if isinstance(task, HarnessTasks) else task for task in compared]
    sets += [extra for extra in more if extra not in sets]
    names = [set_name(each) for each in sets]
    for name in left_out:
        if name not in names:
            raise BadInputError(
                f"{where} names {name!r}, which is no evaluation set of the profile; it has "
                f"{', '.join(dict.fromkeys(names))}"
            )
    return tuple(sets)


def _set_of(task: HarnessTasks) -> HarnessSet:
    revision = revision_of(task)
    return HarnessSet(name=task.name) if revision is None else PinnedHarnessSet(name=task.name, revision=revision)
