"""A kind or a difficulty that there is none of is refused when the recipe is read, whoever makes the exercises."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import ExerciseTasks
from tasks.corpus.stage import ExercisesSource as CorpusSource
from tasks.evolve.stage import ExercisesSource as EvolveSource
from tasks.exercises import DIFFICULTIES
from tasks.exercises.fields import Difficulty

RECIPES: list[tuple[type[Frozen], dict[str, Any], str]] = [
    (ExerciseTasks, {"type": "exercises", "kinds": ["add"]}, "difficulty"),
    (CorpusSource, {"kinds": ["add"], "count": 1}, "difficulty"),
    (EvolveSource, {"kind": "exercises", "kinds": ["add"], "difficulties": [1], "count": 1}, "difficulties"),
]


@pytest.mark.parametrize(("recipe", "good", "level"), RECIPES)
def test_what_there_is_none_of_is_refused(recipe: type[Frozen], good: dict[str, Any], level: str) -> None:
    assert recipe.model_validate(good).model_dump(mode="json")["kinds"] == ["add"]
    with pytest.raises(ValidationError, match="no kind of exercise 'poetry'; choose from reverse, repeat"):
        recipe.model_validate({**good, "kinds": ["add", "poetry"]})
    with pytest.raises(ValidationError, match="at least 1 item"):
        recipe.model_validate({**good, "kinds": []})
    with pytest.raises(ValidationError, match=r"1, 2 or 3"):
        recipe.model_validate({**good, level: [4] if isinstance(good.get(level), list) else 4})


def test_every_difficulty_may_be_named() -> None:
    assert get_args(Difficulty) == DIFFICULTIES
