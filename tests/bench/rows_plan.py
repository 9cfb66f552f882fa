"""Rows of `medius plan --cost`: its formulas against what was measured, and how it bears many receipts."""

from __future__ import annotations

from tests.bench.records import Declared

WAYS = {
    "zero0.fp32": (0, "float32", False),
    "zero1.fp32": (1, "float32", False),
    "zero2.bf16": (2, "bfloat16", False),
    "zero3.bf16": (3, "bfloat16", True),
}
"""ZeRO stage, precision, gradient checkpointing."""
READS = ("plan", "cost", "resume", "gc")


def _row(name: str, unit: str, says: str, goal: float) -> Declared:
    return Declared(name=f"plan.{name}", unit=unit, goal=goal, says=says)


PLAN = [
    _row("parameters", "shapes", "Of configs/models/ whose count is not the one of transformers' model.", 0),
    _row("flops.forward", "", "Relative error against torch's count of a forward pass.", 0.1),
    _row("flops.training", "", "Relative error against torch's count of forward and backward.", 0.1),
    *(
        _row(f"memory.{way}", "", "Relative error of a training's peak against a measured process.", 0.2)
        for way in WAYS
    ),
    *(
        _row(f"bytes.{stage}", "", "Relative error against what the stage of micro then wrote.", 0.1)
        for stage in ("models", "corpus", "dump_logits")
    ),
    _row("objects.dump_logits", "", "Relative error against the files of micro's dump.", 0.1),
    *(
        _row(f"receipts.{read}.{what}", unit, f"{says} over an unfinished dump of 10^9 tokens.", goal)
        for read, says in zip(
            READS, ("The state", "The forecast", "Reading all receipts", "Looking for garbage"), strict=True
        )
        for what, unit, goal in (("seconds", "s", 10), ("memory", "MB", 500))
    ),
]
