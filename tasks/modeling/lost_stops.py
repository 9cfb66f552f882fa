"""How many of the prompts at which a model stopped another one goes on at. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def lost_stops(before: Sequence[bool], after: Sequence[bool]) -> int:
    """Of the prompts that `before` stopped at, those that `after` does not stop at.

    Either is empty where the model has no chat template: it was not asked, and stops at nothing. So a model `after`
    without one loses every stop, and one `before` without one has none to lose.
    """
    now = after or (False,) * len(before)
    was = before or (False,) * len(now)
    return sum(stopped and not stops for stopped, stops in zip(was, now, strict=True))
