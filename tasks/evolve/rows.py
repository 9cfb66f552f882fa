"""The rows of instructions.jsonl, and what every source hands back besides them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.evolve.calls import Message
from tasks.evolve.parsing import REASONS


@dataclass(frozen=True)
class InstructionRow:
    """One conversation to train on, and where it came from."""

    id: str
    messages: tuple[Message, ...]
    lineage: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a source made of what it was offered: seeds, exercises or rows of a data set."""

    rows: Sequence[InstructionRow]
    offered: int
    counts: Mapping[str, int]
    """Why something was dropped, and for `autoevol` also what was done; a name that is absent counts as 0."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Goes into evolve.json as it is."""

    def summary(self, kind: str) -> dict[str, Any]:
        """The numbers of evolve.json, the same names for every kind."""
        names = ("evolved", "evolutions", *REASONS, "duplicates", "calls", "prompt_tokens", "completion_tokens")
        return {
            "source": kind,
            "generated": kind == "exercises",
            "seeds": self.offered,
            "answered": len(self.rows),
            **{name: self.counts.get(name, 0) for name in names},
        }


def write_lines(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes a JSONL file, the same bytes for the same records."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")


def write_result(result: Result, kind: str, directory: Path) -> dict[str, Any]:
    """Writes instructions.jsonl and evolve.json; returns the numbers of the latter."""
    summary = result.summary(kind)
    records = (
        {
            "id": row.id,
            "messages": [message.model_dump() for message in row.messages],
            "lineage": dict(row.lineage),
        }
        for row in result.rows
    )
    write_lines(records, directory / "instructions.jsonl")
    report = json.dumps({**summary, **result.details}, ensure_ascii=False, indent=1, sort_keys=True)
    (directory / "evolve.json").write_text(report + "\n", encoding="utf-8")
    return summary
