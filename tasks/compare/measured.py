"""What was measured of one model, as its shard keeps it: item by item, so that any two models can be paired."""

from __future__ import annotations

from pydantic import Field

from tasks.artifacts.frozen import Frozen
from tasks.modeling.item_bits import Bits


class Measured(Frozen):
    """One model. Items stand in one order for all models of a comparison."""

    tokenizer: str
    """Digest of what determines ids."""
    fault: str | None = None
    """Why nothing below was measured, such as logits that are not finite."""
    documents: tuple[Bits, ...] = ()
    """Held-out texts of the corpus."""
    texts: dict[str, tuple[Bits, ...]] = Field(default_factory=dict)
    """The fixed texts, by kind."""
    arithmetic: tuple[bool, ...] = ()
    """Which items were answered."""
    stopped: tuple[bool, ...] = ()
    """Which prompts were answered to an end; empty without a chat template."""
    template_fault: str | None = None
    """What is wrong with the chat template."""
