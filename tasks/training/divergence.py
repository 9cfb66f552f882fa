"""What is told and kept of a step that diverged: its documents, by the loss of their forward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tasks.training.loader import StepPass

MOST_ROW_IDS = 8
"""Row ids named in an error; a file has the others."""


def worst_first(passes: Sequence[StepPass], losses: Sequence[float]) -> list[tuple[float, StepPass]]:
    """Each forward pass of a step with its loss in nats a target: first what is not finite, then the largest.

    `losses`: summed over each pass's targets, in the order of the passes; any further ones are of none.
    """
    means = [(loss / max(1, one.num_targets), one) for loss, one in zip(losses, passes, strict=False)]
    return sorted(means, key=lambda pair: -pair[0] if math.isfinite(pair[0]) else -math.inf)


def lines_of(passes: Sequence[tuple[float, StepPass]]) -> str:
    """JSON lines {loss, targets, row_ids}, one a pass; a loss that is not finite is null."""
    return "".join(
        json.dumps({"loss": loss if math.isfinite(loss) else None, "targets": one.num_targets, "row_ids": one.row_ids})
        + "\n"
        for loss, one in passes
    )


def named(row_ids: Sequence[str]) -> str:
    """The first 8, and how many more there are."""
    more = f" and {len(row_ids) - MOST_ROW_IDS} more" if len(row_ids) > MOST_ROW_IDS else ""
    return f"{', '.join(row_ids[:MOST_ROW_IDS])}{more}"
