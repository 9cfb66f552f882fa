"""How a recipe names the sets that models are evaluated on. Imports no harness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tasks.artifacts.frozen import Frozen
from tasks.exercises.fields import Difficulty, Kinds


class ExerciseTasks(Frozen):
    """Generated exercises, one harness task a kind: no download, answers checked by the generator's own rule."""

    type: Literal["exercises"]
    kinds: Kinds
    items_per_kind: int = Field(100, ge=2)
    seed: int = 0
    split: Literal["dev", "test"] = "test"
    difficulty: Difficulty | None = None

    @property
    def entries(self) -> tuple[str, ...]:
        """What is measured and told apart: each kind by itself."""
        return tuple(exercise_entry(kind) for kind in self.kinds)


CLOZE = "cloze"
"""What the harness calls the cloze items."""


class ClozeTasks(Frozen):
    """Which word follows in a held-out text (cloze_items.py), as plain text without a template."""

    type: Literal["cloze"]
    items: int = Field(300, ge=20)
    choices: int = Field(10, ge=2, le=26)
    context_chars: int = Field(320, ge=40)
    """Of text before the word, less what is cut off at a word: 320 are about 80 tokens of English."""
    seed: int = 0

    @property
    def entries(self) -> tuple[str, ...]:
        """What is measured and told apart."""
        return (CLOZE,)


def exercise_entry(kind: str) -> str:
    """What the harness calls the exercises of a kind."""
    return f"exercise_{kind}"


def _as_written(version: object) -> object:
    # YAML reads a version without quotes as a number.
    return str(version) if isinstance(version, int | float) and not isinstance(version, bool) else version


class HarnessTasks(Frozen):
    """A task or group that the harness ships; its data come from the hub."""

    type: Literal["lm_eval"]
    name: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    """Must be a mean over items, so that two models can be compared item by item."""
    filter: str = "none"
    """The harness's name of the filter that reads the answer, where a task has several."""
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=2)
    """Only the first items of each task."""
    version: Annotated[str | None, BeforeValidator(_as_written)] = None
    """The harness's version of the task, or of each task of the group; another one is refused."""
    data_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Of the documents, as `harness.data` in the results.json of an evaluation has it; other data are refused."""
    cluster: str | None = Field(None, min_length=1)
    """A field of the documents. Those with an equal value are one question asked several times, not several independent
    ones, and standard errors are made accordingly: "Record ID" of leaderboard_gpqa, whose sets contain each other."""

    @property
    def entries(self) -> tuple[str, ...]:
        """What is measured and told apart: the group as one."""
        return (self.name,)


Revision = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
"""A commit of a data set's repository on the hub; a branch or a tag may move."""


class PinnedHarnessTasks(HarnessTasks):
    """One whose data are of a commit. A class of its own: without one the keys are those of HarnessTasks."""

    revision: Revision
    """Of the repository that the task reads, or all tasks of the group. A copy in a mirror is taken to be of it;
    `data_sha256` says whether it is."""


def revision_of(tasks: HarnessTasks) -> str | None:
    """The commit that the data are of, None where none is stated."""
    return tasks.revision if isinstance(tasks, PinnedHarnessTasks) else None


def kind_of_tasks(value: Any) -> str | None:
    """The tag in a union of exercises, cloze items, harness tasks and pinned ones; None for what is none of them."""
    given = isinstance(value, Mapping)
    kind = value.get("type") if given else getattr(value, "type", None)
    pinned = "revision" in value if given else hasattr(value, "revision")
    return f"{kind}_pinned" if kind == "lm_eval" and pinned else kind


EvaluationTasks = Annotated[
    Annotated[ExerciseTasks, Tag("exercises")]
    | Annotated[ClozeTasks, Tag("cloze")]
    | Annotated[PinnedHarnessTasks, Tag("lm_eval_pinned")]
    | Annotated[HarnessTasks, Tag("lm_eval")],
    Discriminator(kind_of_tasks),
]
