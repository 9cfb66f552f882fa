"""choice.json out of the candidates' shards. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.choose.measured import Measured
from tasks.modeling.item_bits import Bits
from tasks.modeling.lost_stops import lost_stops
from tasks.modeling.statistics import mean_with_error, paired_mean, paired_ratio, ratio_with_error


def build_results(measured: Mapping[str, Measured], default: str) -> dict[str, Any]:
    """Each candidate with its standard errors, and each but the default minus the default over the same items.

    `models[a]` has fault, and where its logits are finite texts and answers (bits per byte), exercises and cloze (a
    share; None without any) and stops {stopped, prompts, lost}; `minus_default[a]` has all but the stops as paired
    differences, for those of which, as of the default, something was measured. A stop is lost that the default makes
    and the other does not.
    """
    own = measured[default]
    return {
        "default": default,
        "models": {name: _summary(each, own) for name, each in measured.items()},
        "minus_default": {
            name: _pair(each, own) for name, each in measured.items() if name != default and each.texts and own.texts
        },
    }


def _summary(measured: Measured, default: Measured) -> dict[str, Any]:
    if not measured.texts:
        return {"fault": measured.fault}
    # Without a template a model was not asked, and stops at nothing.
    num_prompts = len(measured.stopped or default.stopped)
    return {
        "fault": measured.fault,
        "texts": ratio_with_error(*_bits_and_bytes(measured.texts)),
        "answers": ratio_with_error(*_bits_and_bytes(measured.answers)),
        "exercises": mean_with_error(measured.exercises) if measured.exercises else None,
        "cloze": mean_with_error(measured.cloze, measured.cloze_documents) if measured.cloze else None,
        "stops": {
            "stopped": sum(measured.stopped),
            "prompts": num_prompts,
            "lost": lost_stops(default.stopped, measured.stopped),
        },
    }


def _pair(one: Measured, other: Measured) -> dict[str, Any]:
    return {
        "texts": _difference(one.texts, other.texts),
        "answers": _difference(one.answers, other.answers),
        "exercises": paired_mean(one.exercises, other.exercises) if one.exercises and other.exercises else None,
        "cloze": paired_mean(one.cloze, other.cloze, one.cloze_documents) if one.cloze and other.cloze else None,
    }


def _difference(one: Sequence[Bits], other: Sequence[Bits]) -> dict[str, Any]:
    assert [each.document for each in one] == [each.document for each in other], "the same items"
    bits, sizes = _bits_and_bytes(one)
    return paired_ratio(bits, _bits_and_bytes(other)[0], sizes)


def _bits_and_bytes(items: Sequence[Bits]) -> tuple[list[float], list[int]]:
    return [each.bits for each in items], [each.num_bytes for each in items]
