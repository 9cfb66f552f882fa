"""Rows of `medius plan --cost`: its formulas against what was measured, and how it bears many receipts."""

from __future__ import annotations

from typing import NamedTuple

from tests.bench.records import Declared


class Way(NamedTuple):
    """How a training is run whose memory is measured."""

    stage: int
    precision: str
    checkpointing: bool = False
    processes: int = 1
    rows: int = 4
    row_tokens: int = 512
    """Of a pass of each process."""
    documents: int = 1
    """In a row: more than one come with a mask."""
    frozen_ends: bool = False


WAYS = {
    "zero0.fp32": Way(0, "float32"),
    "zero1.fp32": Way(1, "float32", documents=2),
    "zero1.fp32.frozen": Way(1, "float32", documents=2, frozen_ends=True),
    "zero1.fp32.two": Way(1, "float32", processes=2, rows=1),
    # A processor without bfloat16 instructions takes 45 times as long, and this optimiser is another class.
    "zero1.bf16": Way(1, "bfloat16", rows=1, row_tokens=64),
    "zero2.bf16": Way(2, "bfloat16"),
    "zero3.bf16": Way(3, "bfloat16", checkpointing=True),
    "zero3.fp32.two": Way(3, "float32", processes=2, rows=1),
}
READS = ("plan", "cost", "resume", "gc")
STORES = ("disk", "s3")


def _row(name: str, unit: str, says: str, goal: float) -> Declared:
    return Declared(name=f"plan.{name}", unit=unit, goal=goal, says=says)


PLAN = [
    _row("parameters", "shapes", "Of configs/models/ whose count is not the one of transformers' model.", 0),
    _row("flops.forward", "", "Relative error against torch's count of a forward pass.", 0.1),
    _row("flops.training", "", "Relative error against torch's count of a step of packed documents.", 0.1),
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
        _row(f"receipts.{read}.{where}.{what}", unit, f"{says} over an unfinished dump of 10^9 tokens.", goal)
        for read, says in zip(
            READS, ("The state", "The forecast", "Reading all receipts", "Looking for garbage"), strict=True
        )
        for where in STORES
        for what, unit, goal in (("seconds", "s", 10), ("memory", "MB", 500))
    ),
]
