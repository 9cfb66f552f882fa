"""Which of several measured models is taken: a rule that was fixed before anything was measured.

1. Out is what cannot be used: logits that are not finite, or a chat template that does not work, if the reference's
   does.
2. Of the rest, those stay that lose the fewest of the stops that the reference makes: none, if one of them loses none.
3. Of the rest, out is what is worse at arithmetic than the best at it by more than two paired standard errors.
4. Of the rest the lowest bits per byte on held-out texts is taken; the first named, if two are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RULE = (
    "the lowest bits per byte on held-out texts, among those with a working chat template (if the reference has one) "
    "that lose no stop (or the fewest, if all lose some) and answer arithmetic within two paired standard errors of "
    "the best of them"
)
NUM_ERRORS = 2.0


@dataclass(frozen=True)
class Choice:
    """What the rule says."""

    taken: str | None
    """None if nothing can be used."""
    reasons: Mapping[str, str]
    """Why each of the others was not taken."""
    stops_lost: int
    """By the one that was taken."""
    below_reference: str | None = None
    """How far its arithmetic is below the reference's, if by more than two paired standard errors. The decision is then
    not where it was lost: every candidate that could be taken has lost it."""


def choose(results: Mapping[str, Any], candidates: Sequence[str]) -> Choice:
    """Applies the rule to results.json of a comparison; `candidates` are those of its models that can be taken."""
    models, paired = results["models"], results["paired"]
    # A student without a chat template has none after its reversion either.
    judged = models[results["reference"]].get("template_fault") is None
    reasons: dict[str, str] = {}
    usable = []
    for name in candidates:
        fault = models[name]["fault"] or (models[name]["template_fault"] if judged else None)
        if fault is None:
            usable.append(name)
        else:
            reasons[name] = str(fault)
    if not usable:
        return Choice(None, reasons, 0)
    lost = {name: models[name]["stops"]["lost"] for name in usable}
    fewest = min(lost.values())
    for name in usable:
        if lost[name] > fewest:
            reasons[name] = f"no longer stops on {lost[name]} of {models[name]['stops']['prompts']} prompts"
    usable = [name for name in usable if lost[name] == fewest]
    best = max(usable, key=lambda name: models[name]["arithmetic"]["value"])
    within = []
    for name in usable:
        behind = {"difference": 0.0, "stderr": 0.0} if name == best else paired[name][best]["arithmetic"]
        if behind["difference"] >= -NUM_ERRORS * behind["stderr"]:
            within.append(name)
        else:
            reasons[name] = (
                f"arithmetic {-behind['difference']:.3f} ± {behind['stderr']:.3f} below that of {best}, the best"
            )
    taken = min(within, key=lambda name: models[name]["bits_per_byte"]["heldout"]["value"])
    for name in within:
        if name != taken:
            more = paired[name][taken]["bits_per_byte"]["heldout"]
            reasons[name] = f"{more['difference']:+.4f} ± {more['stderr']:.4f} bits per byte"
    # Where the reference gave no usable numbers there is no pair.
    pair = paired[taken].get(results["reference"])
    behind = {"difference": 0.0, "stderr": 0.0} if pair is None else pair["arithmetic"]
    below = (
        f"{-behind['difference']:.3f} ± {behind['stderr']:.3f} below that of {results['reference']}"
        if behind["difference"] < -NUM_ERRORS * behind["stderr"]
        else None
    )
    return Choice(taken, reasons, fewest, below)
