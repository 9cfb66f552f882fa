"""`python -m tests.bench.quality_search`: the search for both arms' recipes, on dev alone.

Prints every trial and writes them to build/bench/quality-search.json, best first in each arm. What it has trained
before it does not train again, unless the code that trains has changed (`quality_folder`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from tests.bench.paths import BENCH
from tests.bench.quality_recipes import (
    ARMS,
    LATER_ROUNDS,
    LEARNING_RATES,
    SEARCH_SEED,
    SEARCH_STEPS,
    Changes,
    joined,
    recipe_of,
)
from tests.bench.quality_steps import corpus, distillation, make

TABLE = BENCH / "quality-search.json"
PROCESSES = 2


@dataclass(frozen=True)
class Trial:
    """One training of the search."""

    arm: str
    changes: Changes
    steps: int
    dev_bits_per_byte: float
    dev_kl: float
    """To the teacher, nats a token."""
    seconds: float


def trial(arm: str, changes: Changes) -> Trial:
    """Trains, or finds the training, and reads what the stage measured on its held-out split."""
    made = make(distillation(f"trial-{arm}", recipe_of(arm, changes, SEARCH_SEED, SEARCH_STEPS)))
    metrics, dev = made.manifest.metrics, make(corpus()).manifest.metrics
    found = Trial(
        arm,
        changes,
        SEARCH_STEPS,
        metrics["heldout_ce"] * dev["heldout_targets"] / dev["heldout_bytes"] / math.log(2),
        metrics["heldout_kl"],
        made.manifest.provenance.seconds,
    )
    print(f"{arm} {changes}: {found.dev_bits_per_byte:.4f} bits per byte, KL {found.dev_kl:.3f}", flush=True)
    return found


def best(trials: Iterable[Trial]) -> Trial:
    """By dev's bits per byte, for both arms."""
    return min(trials, key=lambda each: each.dev_bits_per_byte)


def search(pool: ThreadPoolExecutor) -> list[Trial]:
    """All trials of both arms, best first in each."""
    first = {arm: [pool.submit(trial, arm, changes) for changes in LEARNING_RATES] for arm in ARMS}
    trials: list[Trial] = []
    for arm in ARMS:
        own = [each.result() for each in first[arm]]
        for changes_of_round in LATER_ROUNDS[arm]:
            so_far = best(own).changes
            own += pool.map(partial(trial, arm), [joined(so_far, changes) for changes in changes_of_round])
        trials += sorted(own, key=lambda each: each.dev_bits_per_byte)
    return trials


def main() -> int:
    """The exit code."""
    # What all trials need, before two of them want to make it.
    make(distillation("", recipe_of("student", LEARNING_RATES[0], SEARCH_SEED, SEARCH_STEPS)).inputs["logits"])
    with ThreadPoolExecutor(PROCESSES) as pool:
        trials = search(pool)
    TABLE.write_text(json.dumps([asdict(each) for each in trials], indent=1) + "\n", encoding="utf-8")
    for arm in ARMS:
        print(f"best {arm}: {best(each for each in trials if each.arm == arm)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
