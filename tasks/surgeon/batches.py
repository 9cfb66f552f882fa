"""How many rows are approximated at once where a runtime does not say. No torch, as forecasts read it too."""

from __future__ import annotations

PURSUED_ON_CPU = 16
"""The basis of a batch, batch · k · anchors floats (32 MB here), is read in every step: it must stay in the cache."""
PURSUED_ON_GPU = 512
BY_TOKENSURGEON = 512
"""It holds batch · shared tokens inner products, 225 MB at 110,000 shared."""
