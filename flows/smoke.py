"""What `--smoke` makes of a profile: the same recipe on next to no data and for next to no steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMOKE_FRACTION = 0.001
_AMOUNTS = {
    "limit": 4,
    "count": 8,
    "max_bytes": 60_000,
    "max_rows": 64,
    "steps": 2,
    "embedding_steps": 1,
    "items_per_kind": 2,
    "max_seeds": 64,
    "max_documents": 16,
    "max_heldout_rows": 4,
    "max_conversations": 8,
}
"""What `--smoke` shrinks, wherever it stands in a recipe, and the least that still exercises every stage."""
_HELDOUT_FRACTION = 0.5
"""At least this part of a shrunk corpus is held out: 0.2 % of a few hundred documents may be none, and of the 63 that
60,000 bytes of documentation are the evaluation reads 16 and `choose` others."""
_UNBOUNDED = {
    "lm_eval": "limit",
    "files": "limit",
    "dataset": "max_rows",
    "parquet": "max_rows",
    "autoevol": "max_seeds",
}
"""The amount of each `type` or `kind` that takes everything where its amount is not given."""
_SMALLER_ITEMS: dict[str, dict[str, Any]] = {
    "cloze": {"items": 20, "choices": 2, "context_chars": 80},
    "lm_eval": {"cluster": None},
}
"""Of each `type`: 16 short texts hold few places for cloze items, and a benchmark's first items may be one question."""


def shrink(value: Any) -> Any:
    """A profile's document with every amount of data or steps at 0.1 %: the same DAG under other keys."""
    if isinstance(value, Mapping):
        value = {**value, **_SMALLER_ITEMS.get(str(value.get("type")), {})}
        amount = _UNBOUNDED.get(str(value.get("kind") or value.get("type")))
        if amount is not None and value.get(amount) is None:
            value = {**value, amount: _AMOUNTS[amount]}
        return {key: _shrunk(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [shrink(item) for item in value]
    return value


def _shrunk(key: str, item: Any) -> Any:
    if key == "evaluations":
        # Sets to decontaminate against: naming them is no amount of work.
        return item
    if key == "heldout_fraction":
        return max(_HELDOUT_FRACTION, item)
    if key in _AMOUNTS and isinstance(item, int) and item > _AMOUNTS[key]:
        return max(_AMOUNTS[key], int(item * SMOKE_FRACTION))
    return shrink(item)
