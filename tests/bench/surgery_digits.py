"""Does a model that was trained in another vocabulary still calculate when it is back in its own?

In Llama 3.1's numbers are groups of up to three digits, in SmolLM2's own and in Qwen2.5's they are single digits. Back
from Llama's it comes by every strategy of the reversion; from Qwen2.5's by `omp_anchored`, which needs a donor with
rows, and that is SmolLM2 as it was.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tasks.compare.arithmetic import NUM_SHOTS, Sum, answered, pages
from tasks.modeling.statistics import mean_with_error, paired_mean
from tasks.runtime.declare import Step
from tasks.surgeon.stage import RevertRecipe
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import BACK, KINDS, STRATEGIES
from tests.bench.swap_folder import folder, write_once
from tests.bench.swap_steps import (
    SPECIAL_TOKENS,
    WARM_UP_SAID,
    before,
    make,
    measured_model,
    moved,
    reversion,
    smollm2,
    tokenizer,
    transplant,
    warmed,
)
from tests.bench.swap_texts import training_file

PROCESSES = 2
IN_LLAMA = "in_llama"
ITEMS, SEED = 300, 0
"""The standard error of an accuracy of 0.5 over 300 is 0.029."""
PAGES_AT_ONCE = 4
DEFAULT: str = RevertRecipe.model_fields["strategy"].default


def _digits() -> Iterator[Measured]:
    # Before the threads, two of which would make the same files at once.
    training_file(KINDS)
    make(smollm2())
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(make, (trained_in_llama(), before(BACK))))
        steps = ways()
        after = dict(zip(steps, pool.map(_answered, steps.values()), strict=True))
    asked = pages(ITEMS, SEED)
    first = _answered(smollm2())
    said = (
        f"{len(first)} sums, differences and products, greedy answer and the line's end, after {NUM_SHOTS} or more "
        f"solved ones; before {by_operation(asked, first)}"
    )
    accuracy = mean_with_error(first)
    yield Measured(
        "surgery.digits.accuracy_before",
        accuracy["value"],
        f"standard error {accuracy['stderr']:.3f}; {said}; SmolLM2-135M-Instruct",
        len(first),
    )
    for way, answers in after.items():
        accuracy, compared = mean_with_error(answers), paired_mean(answers, first)
        # Without a difference in any answer the error is 0.
        z = 0.0 if compared["difference"] == 0 else compared["z"] or math.nan
        how = f"{said}, after {by_operation(asked, answers)}; {_path(way)}"
        yield Measured(
            f"surgery.digits.{way}.accuracy_after",
            accuracy["value"],
            f"standard error {accuracy['stderr']:.3f}; {how}",
            len(answers),
        )
        yield Measured(
            f"surgery.digits.{way}.z",
            z,
            f"difference {compared['difference']:+.4f}, paired standard error {compared['stderr']:.4f}; {how}",
            len(answers),
        )


def ways() -> dict[str, Step]:
    """SmolLM2 in Llama's vocabulary, and back in its own, by how it came there."""
    back = {strategy: reverted(strategy) for strategy in STRATEGIES}
    return {IN_LLAMA: trained_in_llama(), **back, "omp_anchored": moved(BACK, "omp_anchored")}


def trained_in_llama() -> Step:
    """SmolLM2 in Llama's vocabulary, trained there."""
    recipe = {"method": "composed", "special_tokens": SPECIAL_TOKENS["smollm2", "llama"]}
    return warmed(transplant("smollm2-to-llama", smollm2(), tokenizer("llama"), recipe))


def reverted(strategy: str) -> Step:
    """SmolLM2 as it was trained in Llama's vocabulary, back in its own."""
    # The one that brings no trained rows back has no use for the map.
    brings = {} if strategy == "original_rows" else {"special_tokens": SPECIAL_TOKENS["smollm2", "llama"]}
    label = f"smollm2-from-llama-{strategy.replace('_', '-')}"
    return reversion(label, trained_in_llama(), smollm2(), {"strategy": strategy, **brings})


def _path(way: str) -> str:
    if way == IN_LLAMA:
        return f"SmolLM2, composed rows of Llama 3.1's tokens, {WARM_UP_SAID}; its answers are groups of digits"
    if way in STRATEGIES:
        default = ", the default" if way == DEFAULT else ""
        return f"SmolLM2, composed rows of Llama 3.1's tokens, {WARM_UP_SAID}, reverted by {way}{default}"
    return (
        f"SmolLM2, composed rows of Qwen2.5's tokens, {WARM_UP_SAID}, into its own vocabulary by {way} with itself as "
        f"the donor, not trained after"
    )


def _answered(step: Step) -> list[bool]:
    """Kept until the bench ends."""
    made = make(step)
    file = folder() / "sums" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}.json"
    if not file.is_file():
        answer = partial(answered, asked=pages(ITEMS, SEED), batch_size=PAGES_AT_ONCE)
        write_once(file, json.dumps(measured_model(step, answer)))
        print(f"  {step.label} has answered", flush=True)
    answers: list[bool] = json.loads(file.read_text())
    return answers


def by_operation(asked: Sequence[Sequence[Sum]], answers: Sequence[bool]) -> str:
    """The share of right answers to each sign's scored lines, such as "+ 0.500, - 1.000"."""
    scored = [line for page in asked for line in page[NUM_SHOTS:]]
    right: dict[str, list[bool]] = defaultdict(list)
    for line, answer in zip(scored, answers, strict=True):
        right[line.prompt.split()[1]].append(answer)
    return ", ".join(f"{sign} {sum(found) / len(found):.3f}" for sign, found in sorted(right.items()))


MEASUREMENTS = [Measurement("surgery_digits", _digits, ("surgery.digits.*",))]
