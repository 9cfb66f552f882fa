"""How a recipe names exercises; what there is none of is refused when the recipe is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tasks.exercises.exercise import KINDS


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"there is no kind of exercise {kind!r}; choose from {', '.join(KINDS)}")
    return kind


Kinds = Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], Field(min_length=1)]
"""Names from KINDS."""
Difficulty = Literal[1, 2, 3]
"""One of DIFFICULTIES."""
