"""How a recipe names the sets that models are evaluated on. Imports no harness."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.artifacts.frozen import Frozen


class ExerciseTasks(Frozen):
    """Generated exercises, one harness task a kind: no download, answers checked by the generator's own rule."""

    type: Literal["exercises"]
    kinds: tuple[str, ...] = Field(min_length=1)
    items_per_kind: int = Field(100, ge=2)
    seed: int = 0
    split: Literal["dev", "test"] = "test"
    difficulty: int | None = None


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


EvaluationTasks = Annotated[ExerciseTasks | HarnessTasks, Field(discriminator="type")]
