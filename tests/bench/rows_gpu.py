"""Rows that need a CUDA device."""

from __future__ import annotations

from tests.bench.records import Declared

GPU = [
    Declared(
        name="gpu.dump_over_forward.bf16",
        unit="",
        goal=1.05,
        says="Time of a dumped shard over the teacher's forward passes with logits on the same batches.",
    ),
    Declared(
        name="gpu.loss_over_products.bf16",
        unit="",
        goal=1.15,
        says="Fused CE + forward KL with both gradients over its three matrix products.",
    ),
    Declared(
        name="gpu.loss_over_liger_ce.bf16",
        unit="",
        goal=1.05,
        says="Fused CE + forward KL with both gradients over Liger's fused linear cross-entropy with them.",
    ),
]
