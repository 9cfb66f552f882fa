"""What was measured of one candidate, as its shard keeps it: item by item, so that any two can be paired. No torch."""

from __future__ import annotations

from tasks.artifacts.frozen import Frozen
from tasks.modeling.item_bits import Bits


class Measured(Frozen):
    """One candidate. Items stand in one order for all."""

    fault: str | None = None
    """Why it cannot be used: logits that are not finite (then nothing below was measured), or a broken template."""
    texts: tuple[Bits, ...] = ()
    """Held-out texts."""
    answers: tuple[Bits, ...] = ()
    """The assistant's turns of held-out conversations, their ends included."""
    exercises: tuple[bool, ...] = ()
    """Which were answered."""
    cloze: tuple[bool, ...] = ()
    """Of which cloze items the right word was the likeliest."""
    cloze_documents: tuple[str, ...] = ()
    """Of which text each is."""
    stopped: tuple[bool, ...] = ()
    """Which prompts were answered to an end."""
