"""What one text costs a model, as a shard of a comparison keeps it. No torch."""

from __future__ import annotations

from tasks.artifacts.frozen import Frozen


class Bits(Frozen):
    """What one text costs a model."""

    document: str
    bits: float
    num_bytes: int
