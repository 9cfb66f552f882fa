"""What each strategy of the reversion leaves of a model's text, in bits per byte on the four kinds.

The models are those of `surgery_digits.py`: SmolLM2, trained in Llama 3.1's vocabulary and back by each strategy.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import KINDS, STRATEGIES
from tests.bench.surgery_digits import DEFAULT, reverted, trained_in_llama
from tests.bench.swap_bits import bits_of, rates
from tests.bench.swap_steps import WARM_UP_SAID, smollm2
from tests.bench.swap_texts import measured_texts


def _reversion_bits() -> Iterator[Measured]:
    texts = measured_texts()
    steps = {"before": smollm2(), "trained": trained_in_llama()}
    steps |= {strategy: reverted(strategy) for strategy in STRATEGIES}
    for state, step in steps.items():
        of_kind = rates(bits_of(step))
        for kind in KINDS:
            num_bytes = sum(len(text.text.encode()) for text in texts[kind])
            yield Measured(
                f"surgery.reversion_bits.{state}.{kind}",
                of_kind[kind],
                f"{len(texts[kind])} texts, {num_bytes} bytes of {kind}; {said(state)}",
            )


def said(state: str) -> str:
    """Which model a row is of."""
    if state == "before":
        return "SmolLM2-135M-Instruct"
    trained = f"SmolLM2, composed rows of Llama 3.1's tokens, {WARM_UP_SAID}"
    back = f", reverted by {state}{', the default' if state == DEFAULT else ''}"
    return trained if state == "trained" else trained + back


MEASUREMENTS = [Measurement("surgery_reversion_bits", _reversion_bits, ("surgery.reversion_bits.*",))]
