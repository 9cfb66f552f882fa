"""Gates that several stages share: bits per byte by kind of text, and answers that stop. What is judged was measured
by tasks/modeling (bits_per_byte.py, stopping.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.runtime.declare import GateResult, Gates, at_most

TEXT_KINDS = ("prose", "code", "digits", "non_latin")


def judge_ratios(ratios: Mapping[str, float | None], gates: Gates, meaning: str) -> list[GateResult]:
    """Holds a ratio for each kind of text against the field `max_ratio_<kind>` of `gates`.

    `meaning` has one {} for the kind. A ratio that is missing fails; None says that logits were not finite.
    """
    return [
        result
        for kind in TEXT_KINDS
        for result in at_most(
            f"max_ratio_{kind}",
            ratios.get(kind),
            getattr(gates, f"max_ratio_{kind}"),
            meaning.format(kind.replace("_", "-"))
            + ("; its logits are not finite" if kind in ratios and ratios[kind] is None else ""),
        )
    ]


def judge_stops(stops: Mapping[str, Any] | None, threshold: float | None, meaning: str) -> list[GateResult]:
    """Holds the `lost_share` of compared_stops (tasks/modeling/stopping.py) against `max_stops_lost`.

    Passes without a value where it is `not_judged`, such as without a chat template before; the sentence then says why.
    Stops that were not measured at all fail, and so does a chat template that was lost, whatever the threshold.
    """
    if threshold is None:
        return []
    if stops is not None and stops.get("template_lost"):
        said = f"{meaning}; the model after has no chat template, which the one before had"
        return [GateResult("max_stops_lost", False, stops["lost_share"], threshold, "<=", said)]
    if stops is not None and stops["not_judged"]:
        return [GateResult("max_stops_lost", True, None, threshold, "<=", f"not judged: {stops['not_judged']}")]
    return at_most("max_stops_lost", None if stops is None else stops["lost_share"], threshold, meaning)
