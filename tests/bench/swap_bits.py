"""Bits of each measured text by a step's model, kept until the bench ends, and two models compared by them.

Documents are the units of the errors. The kinds are fixed, not drawn: each has its own ratio of sums (`paired_ratio`),
and the error of their mean is that of independent ratios, √(Σ SE²) / number of kinds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.modeling.document_bits import DocumentBits, document_bits
from tasks.modeling.statistics import paired_ratio
from tasks.runtime.declare import Step
from tests.bench.rows_surgery import KINDS
from tests.bench.swap_folder import folder, write_once
from tests.bench.swap_steps import make, measured_model
from tests.bench.swap_texts import measured_texts

WINDOW_TOKENS = 1024
BATCH_SIZE = 4
Bits = Mapping[str, Sequence[DocumentBits]]
"""By kind, the same documents in the same order for every model."""
_BITS: TypeAdapter[dict[str, list[DocumentBits]]] = TypeAdapter(dict[str, list[DocumentBits]])


@dataclass(frozen=True)
class Excess:
    """How much more one model needs than another: bits a byte, mean of the kinds."""

    difference: float
    error: float
    """Paired standard error of the difference."""
    ratio: float
    ratio_error: float
    """By the other model's bits as they are, so that the ratio is as many errors from 1 as the difference from 0."""

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        if self.error == 0:
            return 0.0 if self.difference == 0 else math.copysign(math.inf, self.difference)
        return self.difference / self.error


def excess(one: Bits, other: Bits) -> Excess:
    """What `one` needs beyond `other`."""
    pairs = [
        paired_ratio(
            [document.bits for document in one[kind]],
            [document.bits for document in other[kind]],
            [document.num_bytes for document in other[kind]],
        )
        for kind in one
    ]
    error = math.hypot(*(pair["stderr"] for pair in pairs)) / len(pairs)
    against = mean_bits(other)
    return Excess(
        difference=statistics.fmean(pair["difference"] for pair in pairs),
        error=error,
        ratio=mean_bits(one) / against,
        ratio_error=error / against,
    )


def mean_bits(bits: Bits) -> float:
    """Bits a byte, mean of the kinds."""
    return statistics.fmean(rates(bits).values())


def rates(bits: Bits) -> dict[str, float]:
    """Bits a byte of each kind."""
    return {
        kind: sum(each.bits for each in documents) / sum(each.num_bytes for each in documents)
        for kind, documents in bits.items()
    }


def bits_of(step: Step) -> Bits:
    """The model is made and measured on the first call."""
    made = make(step)
    file = folder() / "bits" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}.json"
    if not file.is_file():
        write_once(file, _BITS.dump_json(measured_model(step, _measure)).decode())
        print(f"  {step.label} measured", flush=True)
    return _BITS.validate_json(file.read_bytes())


def _measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[DocumentBits]]:
    texts = measured_texts()
    return {
        kind: document_bits(
            model,
            tokenizer,
            texts[kind],
            window_tokens=WINDOW_TOKENS,
            batch_size=BATCH_SIZE,
            after_batch=lambda: None,
        )
        for kind in KINDS
    }
