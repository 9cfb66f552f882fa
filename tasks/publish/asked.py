"""How an evaluation put its items to the models: what a reader needs to set the numbers beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.publish.tables import MISSING, Table

_GENERATED = "generate_until"
"""The harness's name for answers that a model writes; the others are choices by their likelihood."""
_DIGITS = 12
"""Of a sha256: enough to tell data sets apart."""


def asked(results: Mapping[str, Any]) -> str:
    """In a clause: how answers were taken, and whether in a chat template."""
    tasks: Mapping[str, Mapping[str, Any]] = results["harness"]["tasks"]
    generated = any(about["output_type"] == _GENERATED for about in tasks.values())
    chosen = any(about["output_type"] != _GENERATED for about in tasks.values())
    plain = sorted(name for name, about in tasks.items() if about["plain_text"])
    told = ["answers by greedy decoding"] if generated else []
    told += ["choices by their likelihood"] if chosen else []
    templated = results["models"][results["candidate"]]["tokenizer"]["template_sha256"] is not None
    if templated and len(plain) < len(tasks):
        told.append(
            "prompts in each model's own chat template" + (f", {', '.join(plain)} without one" if plain else "")
        )
    else:
        told.append("prompts as plain text")
    return ", ".join(told)


def asked_table(results: Mapping[str, Any]) -> Table:
    """One row a task: its version in the harness, its shots, its metric, how answers were taken, and its data."""
    rows = [
        (
            task,
            about["version"],
            str(about["num_fewshot"]),
            about["metric"],
            "generated" if about["output_type"] == _GENERATED else "likelihood",
            (about["data_sha256"] or MISSING)[:_DIGITS],
        )
        for task, about in results["harness"]["tasks"].items()
    ]
    return Table(("task", "version", "shots", "metric", "answers", "sha256 of the data"), tuple(rows))
