"""Which candidate goes on: a rule that was fixed before anything was measured. No torch.

1. Out is what cannot be used: logits that are not finite, a broken chat template, or no prompt answered to an end.
   Where that is the default, the usable candidate with the fewest bits per byte of answers goes on.
2. Another candidate takes the default's place if, over the same items,
   a. it gains: exercises answered, cloze items, or bits per byte of held-out answers, by NUM_ERRORS paired standard
      errors,
   b. it is not worse by as many on another of these,
   c. its bits per byte of held-out texts exceed the default's by at most `max_text_loss`, and
   d. it stops at the prompts that the default stops at, but for a share of `max_stops_lost`.
3. Of several that do, the one with the fewest bits per byte of answers; the first named, if two are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_ERRORS = 2.0
RULE = (
    "another candidate takes the default's place if it gains two paired standard errors in exercises, cloze items or "
    "bits per byte of held-out answers, loses as much in none of them, and keeps to the bounds on texts and on stops"
)
_ITEMS = {"exercises": "of the exercises", "cloze": "of the cloze items"}


@dataclass(frozen=True)
class Choice:
    """What the rule says."""

    chosen: str
    reason: str
    """One sentence."""
    verdicts: Mapping[str, str]
    """What is to be said of each candidate but the chosen one."""


def choose(results: Mapping[str, Any], default: str, max_text_loss: float, max_stops_lost: float) -> Choice:
    """Applies the rule to what `build_results` gives."""
    models, against = results["models"], results["minus_default"]
    unusable = {name: fault for name, model in models.items() if (fault := _unusable(model)) is not None}
    usable = [name for name in models if name not in unusable]
    if not usable:
        faults = ", ".join(f"{name}: {fault}" for name, fault in unusable.items())
        return Choice(default, f"{default} stays, since no candidate can be used ({faults})", unusable)
    if default in unusable:
        best = min(usable, key=lambda name: models[name]["answers"]["value"])
        return Choice(best, f"{best} goes on, since {default} cannot be used: {unusable[default]}", unusable)
    verdicts, better = dict(unusable), []
    for name in usable:
        if name == default:
            continue
        objection = _objection(models, name, default, against[name], max_text_loss, max_stops_lost)
        if objection is None:
            better.append(name)
        else:
            verdicts[name] = objection
    if not better:
        why = "; ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
        return Choice(default, f"{default} stays: {why}", verdicts)
    best = min(better, key=lambda name: models[name]["answers"]["value"])
    for name in better:
        if name != best:
            verdicts[name] = f"is better than {default} too, but has more bits per byte of answers than {best}"
    verdicts[default] = f"is worse than {best}"
    texts = _signed(against[best]["texts"], "bits per byte of texts")
    return Choice(best, f"{best} goes on: against {default} {_gains(against[best])}, and {texts}", verdicts)


def _unusable(model: Mapping[str, Any]) -> str | None:
    if model["fault"] is not None:
        return str(model["fault"])
    stops = model["stops"]
    return None if stops["stopped"] else f"it stops at none of {stops['prompts']} prompts"


def _objection(
    models: Mapping[str, Any],
    name: str,
    default: str,
    pair: Mapping[str, Any],
    max_text_loss: float,
    max_stops_lost: float,
) -> str | None:
    """Why a usable candidate does not take the default's place."""
    better, worse = _beyond(pair, 1), _beyond(pair, -1)
    if worse:
        return f"is worse beyond {NUM_ERRORS:g} standard errors: {_gains(pair)}"
    if not better:
        return f"gains nothing beyond {NUM_ERRORS:g} standard errors: {_gains(pair)}"
    part = pair["texts"]["difference"] / models[default]["texts"]["value"]
    if part > max_text_loss:
        return (
            f"has {_signed(pair['texts'], 'bits per byte of texts')}, {100 * part:.1f} % more where "
            f"{100 * max_text_loss:g} % are allowed"
        )
    lost, before = models[name]["stops"]["lost"], models[default]["stops"]["stopped"]
    if lost > max_stops_lost * before:
        return f"no longer stops at {lost} of the {before} prompts at which {default} does"
    return None


def _beyond(pair: Mapping[str, Any], sign: int) -> bool:
    """Whether a measure of what is gained is better (sign 1) or worse (-1) than chance would have it."""
    gains = [(-pair["answers"]["difference"], pair["answers"]["stderr"])]
    gains += [(pair[task]["difference"], pair[task]["stderr"]) for task in _ITEMS if pair[task] is not None]
    return any(sign * gain > 0 and sign * gain >= NUM_ERRORS * stderr for gain, stderr in gains)


def _gains(pair: Mapping[str, Any]) -> str:
    parts = [_signed(pair["answers"], "bits per byte of answers")]
    parts += [_signed(pair[task], what, digits=3) for task, what in _ITEMS.items() if pair[task] is not None]
    return ", ".join(parts)


def _signed(estimate: Mapping[str, Any], what: str, digits: int = 4) -> str:
    return f"{estimate['difference']:+.{digits}f} ± {estimate['stderr']:.{digits}f} {what}"
