"""Does a model that was trained in Llama 3.1's vocabulary, where numbers are groups of up to three digits, still
calculate in its own, where they are single digits?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tasks.modeling.statistics import mean_with_error, paired_mean
from tasks.runtime.declare import Step
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import BACK, KINDS
from tests.bench.swap_steps import (
    FOLDER,
    SPECIAL_TOKENS,
    WARM_UP_SAID,
    before,
    make,
    measured_model,
    reversion,
    smollm2,
    tokenizer,
    transplant,
    warmed,
    write_once,
)
from tests.bench.swap_sums import ITEMS, SHOTS, right_answers, sums
from tests.bench.swap_texts import training_file


def _digits() -> Iterator[Measured]:
    # Before the threads, two of which would make the same files at once.
    training_file(KINDS)
    make(smollm2())
    with ThreadPoolExecutor(2) as pool:
        # The second is what surgery_warm_up begins with: this way no core waits for the other.
        list(pool.map(make, (returned(), before(BACK))))
    first, last = (_answered(step) for step in (smollm2(), returned()))
    compared = paired_mean(last, first)
    # Without a difference in any answer the error is 0.
    z = 0.0 if compared["difference"] == 0 else compared["z"] or math.nan
    said = (
        f"{ITEMS} each of sums and differences of numbers up to 99 and products up to 12 · 12, after {SHOTS} solved "
        f"ones; greedy answer and the line's end; "
        f"by operation before {_by_operation(first)}, after {_by_operation(last)}"
    )
    way = f"SmolLM2-135M-Instruct, composed rows of Llama 3.1's tokens, {WARM_UP_SAID}, reverted by the default"
    for when, answers in (("before", first), ("after", last)):
        accuracy = mean_with_error(answers)
        yield Measured(
            f"surgery.digits.accuracy_{when}",
            accuracy["value"],
            f"standard error {accuracy['stderr']:.3f}; {said}; {way}",
            len(answers),
        )
    yield Measured(
        "surgery.digits.z",
        z,
        f"difference {compared['difference']:+.4f}, paired standard error {compared['stderr']:.4f}; {said}; {way}",
        len(first),
    )


def returned() -> Step:
    """SmolLM2 in Llama's vocabulary, trained there and back in its own."""
    recipe = {"method": "composed", "special_tokens": SPECIAL_TOKENS["smollm2", "llama"]}
    there = transplant("smollm2-to-llama", smollm2(), tokenizer("llama"), recipe)
    return reversion("smollm2-from-llama", warmed(there), smollm2())


def _answered(step: Step) -> list[bool]:
    """Kept beside the store."""
    made = make(step)
    file = FOLDER / "sums" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}-{ITEMS}-{SHOTS}.json"
    if not file.is_file():
        write_once(file, json.dumps(measured_model(step, partial(right_answers, items=sums()))))
        print(f"  {step.label} has answered", flush=True)
    answers: list[bool] = json.loads(file.read_text())
    return answers


def _by_operation(answers: list[bool]) -> str:
    return ", ".join(f"{sum(answers[at : at + ITEMS]) / ITEMS:.3f}" for at in range(0, len(answers), ITEMS))


MEASUREMENTS = [Measurement("surgery_digits", _digits, ("surgery.digits.*",))]
