"""How the two arms are trained: what they share, what is searched, and what the search on dev has chosen.

Both arms have the same start, documents, order, steps, batch and precision, and the same number of trials. The learning
rate is searched over one grid for both. Then the student's loss is, and as often the twin's optimiser, as its loss has
nothing to choose.
"""

from __future__ import annotations

from typing import Any

ARMS = ("student", "twin")
SEEDS = (1, 2, 3)
"""Of the order of the documents, the only chance in a training."""
SEARCH_SEED = 0
ROWS_PER_STEP = 4
"""About 520 tokens."""
NUM_STEPS = 40
SEARCH_STEPS = 20
"""Of a trial: half of the budget."""

Changes = dict[str, dict[str, Any]]
"""Fields of the recipe's blocks loss and optimizer."""

_LOSS = {"student": {"forward_kl": 1.0, "ce": 0.0}, "twin": {"forward_kl": 0.0, "ce": 1.0}}
_OPTIMIZER = {"warmup_fraction": 0.1}
LEARNING_RATES: list[Changes] = [{"optimizer": {"learning_rate": rate}} for rate in (2.5e-4, 5e-4, 1e-3, 2e-3)]
"""The first round of both arms."""
LATER_ROUNDS: dict[str, list[list[Changes]]] = {
    "student": [
        [
            {"loss": {"temperature": 2.0}},
            {"loss": {"forward_kl": 0.5, "ce": 0.5}},
            {"loss": {"forward_kl": 0.5, "ce": 0.5, "temperature": 2.0}},
        ],
        [{"optimizer": {"learning_rate": 7e-4}}, {"loss": {"forward_kl": 0.7, "ce": 0.3}}],
    ],
    "twin": [
        [
            {"optimizer": {"weight_decay": 0.1}},
            {"optimizer": {"warmup_fraction": 0.3}},
            {"optimizer": {"betas": [0.9, 0.99]}},
        ],
        [{"optimizer": {"learning_rate": 7e-4}}, {"optimizer": {"final_fraction": 0.0}}],
    ],
}
"""Each changes the best recipe of the rounds before. As many trials for the one as for the other."""
CHOSEN: dict[str, Changes] = {
    "student": {"loss": {"forward_kl": 0.5, "ce": 0.5}, "optimizer": {"learning_rate": 7e-4}},
    "twin": {"optimizer": {"learning_rate": 7e-4, "warmup_fraction": 0.3}},
}
"""The best on dev of `python -m tests.bench.quality_search`."""


def recipe_of(arm: str, changes: Changes, seed: int, steps: int) -> dict[str, Any]:
    """The recipe of the stage distill."""
    return {
        "loss": {**_LOSS[arm], **changes.get("loss", {})},
        "optimizer": {**_OPTIMIZER, **changes.get("optimizer", {})},
        "steps": steps,
        "rows_per_step": ROWS_PER_STEP,
        "seed": seed,
        "precision": "float32",
    }


def joined(*changes: Changes) -> Changes:
    """All of them; a later one wins."""
    blocks: Changes = {}
    for change in changes:
        for name, block in change.items():
            blocks[name] = {**blocks.get(name, {}), **block}
    return blocks
