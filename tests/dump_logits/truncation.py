"""One chunk truncated by itself, whatever fills its logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tasks.dump_logits.head import Fill
from tasks.dump_logits.scan import Scan
from tasks.dump_logits.truncate import truncated
from tasks.logits.positions import Positions
from tasks.logits.schema import Support


def truncate(
    fill: Fill,
    vocab_size: int,
    gold_C: Tensor,
    support: Support,
    temperatures: Sequence[float] = (),
    uniforms_CN: Tensor | None = None,
) -> Positions:
    """Truncates the distributions of one chunk whose logits come from `fill`."""
    groups = Scan(vocab_size, temperatures)(fill, len(gold_C), gold_C.device)
    return truncated(groups, gold_C, support, temperatures, uniforms_CN)
