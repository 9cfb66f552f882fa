"""results.json of a comparison out of the models' shards. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.compare.measured import Measured
from tasks.modeling.item_bits import Bits
from tasks.modeling.lost_stops import lost_stops
from tasks.modeling.statistics import mean_with_error, paired_mean, paired_ratio, ratio_with_error

HELDOUT = "heldout"
"""The name of the corpus' documents beside the kinds of fixed texts."""


def build_results(measured: Mapping[str, Measured], reference: str) -> dict[str, Any]:
    """Everything that results.json holds.

    `models[a]` has bits_per_byte {heldout, prose, …}, arithmetic, stops {stopped, prompts, lost}, template_fault and
    fault, each number with its standard error. `paired[a][b]` is a minus b over the same items, for every two models
    of which something was measured. A stop is lost that the reference makes and the model does not: none, where the
    reference was not asked, having no chat template or broken numbers.
    """
    whole = {name: each for name, each in measured.items() if each.fault is None}
    return {
        "reference": reference,
        "models": {name: _summary(each, measured[reference]) for name, each in measured.items()},
        "paired": {
            name: {other: _pair(each, whole[other]) for other in whole if other != name} for name, each in whole.items()
        },
    }


def _bits(measured: Measured) -> dict[str, tuple[Bits, ...]]:
    return {HELDOUT: measured.documents, **measured.texts}


def _summary(measured: Measured, reference: Measured) -> dict[str, Any]:
    about: dict[str, Any] = {"tokenizer": measured.tokenizer, "fault": measured.fault}
    if measured.fault is not None:
        return about
    return {
        **about,
        "bits_per_byte": {
            kind: ratio_with_error([text.bits for text in texts], [text.num_bytes for text in texts])
            for kind, texts in _bits(measured).items()
        },
        "arithmetic": mean_with_error(measured.arithmetic),
        "stops": {
            "stopped": sum(measured.stopped),
            "prompts": len(measured.stopped),
            "lost": lost_stops(reference.stopped, measured.stopped),
        },
        "template_fault": measured.template_fault,
    }


def _pair(one: Measured, other: Measured) -> dict[str, Any]:
    against = _bits(other)
    pairs = {}
    for kind, texts in _bits(one).items():
        assert [text.document for text in texts] == [text.document for text in against[kind]], "the same texts"
        pairs[kind] = paired_ratio(
            [text.bits for text in texts], [text.bits for text in against[kind]], [text.num_bytes for text in texts]
        )
    return {"bits_per_byte": pairs, "arithmetic": paired_mean(one.arithmetic, other.arithmetic)}
