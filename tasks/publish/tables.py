"""The tables of the card, the report and the command line, as plain data; and their Markdown.

Numbers come with their standard errors. Values of two tokenizers stand side by side only where they compare: bits per
byte and accuracy. KL to a teacher stands with the model that was measured in that teacher's vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.publish.lineage import Ancestor
from tasks.publish.names import served_name

MISSING = "–"
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
BEFORE_REVERSION = "*"
"""Marks a KL that was measured while the model still had its teacher's vocabulary."""


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A pipe table. Whatever is in a cell stays in it."""
        names, *rows = [[plain(cell).replace("|", "\\|") for cell in line] for line in (self.columns, *self.rows)]
        lines = [names, ["---"] * len(names), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """One line of Markdown in which nothing is HTML."""
    return _TAG.sub(r"\\<", " ".join(text.splitlines()))


def number(value: float | None, digits: int = 4) -> str:
    """A value in the table's precision."""
    return MISSING if value is None else f"{value:.{digits}f}"


def with_error(estimate: Mapping[str, Any] | None, key: str = "value", digits: int = 4) -> str:
    """`0.8200 ± 0.0120`."""
    return MISSING if estimate is None else f"{number(estimate[key], digits)} ± {number(estimate['stderr'], digits)}"


def results_rows(results: Mapping[str, Any], kl: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a model: bits per byte, accuracy (n), KL to its own teacher. The reference first, the candidate last.

    Args:
        results: results.json of an evaluation.
        kl: by model name, {start, end, before_reversion}, as `kl_by_model` gives it; if empty, there is no such column.
    """
    rows = []
    for name in ordered_models(results):
        model = results["models"][name]
        row = {
            "model": name,
            "bits per byte": with_error(model.get("bits_per_byte")),
            "accuracy": with_error(model["accuracy"], digits=3),
            "items": str(model["accuracy"]["n"]),
        }
        rows.append({**row, "KL to its teacher": kl_text(kl.get(name))} if kl else row)
    return rows


def results_table(results: Mapping[str, Any], kl: Mapping[str, Mapping[str, Any]]) -> Table:
    """`results_rows` as a table."""
    rows = results_rows(results, kl)
    return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def kl_text(kl: Mapping[str, Any] | None) -> str:
    """`3.1000 → 0.4000`, in nats."""
    if kl is None:
        return MISSING
    mark = BEFORE_REVERSION if kl["before_reversion"] else ""
    return f"{number(kl['start'])} → {number(kl['end'])}{mark}"


def headline(results: Mapping[str, Any], kl: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sentences under the table: how much was measured, and how the final model stands to each other model."""
    candidate = results["candidate"]
    own = results["models"][candidate]
    measured = f"{own['accuracy']['n']} items"
    if "bits_per_byte" in own:
        measured += f" and {own['bits_per_byte']['documents']} held-out texts ({own['bits_per_byte']['bytes']} bytes)"
    lines = [f"Measured on {measured}; ± is one standard error, differences are paired."]
    against = results["paired"][candidate]
    for other in (name for name in ordered_models(results) if name in against):
        pair = against[other]
        z = pair["accuracy"]["z"]
        text = f"{candidate} minus {other}: accuracy {_signed(pair['accuracy'], 3)}"
        text += f" (z {z:.1f})" if z is not None else ""
        if "bits_per_byte" in pair:
            text += f", bits per byte {_signed(pair['bits_per_byte'], 4)}"
        lines.append(text)
    lines += served_lines(results)
    if any(each["before_reversion"] for each in kl.values()):
        lines.append(f"{BEFORE_REVERSION} in the teacher's vocabulary, before the reversion")
    return lines


def served_lines(results: Mapping[str, Any]) -> list[str]:
    """Which models answered at a server, and what was said to be deployed there."""
    return [
        f"{name} is {served_name(served['model'])} at a server, said to be {served['revision']}, "
        f"asked by {served['api']}"
        for name in ordered_models(results)
        if (served := results["models"][name].get("served")) is not None
    ]


def tasks_table(results: Mapping[str, Any]) -> Table:
    """One row a task, one column a model."""
    names = ordered_models(results)
    tasks = results["models"][results["candidate"]]["tasks"]
    rows = [
        (
            task,
            about["metric"],
            str(about["n"]),
            *(with_error(results["models"][name]["tasks"][task], digits=3) for name in names),
        )
        for task, about in tasks.items()
    ]
    return Table(("task", "metric", "items", *names), tuple(rows))


def nearness_table(results: Mapping[str, Any], expected: Mapping[str, float]) -> Table:
    """The candidate's results beside published values: difference and its size in standard errors of the measurement.

    `expected` names tasks or groups as the evaluation's recipe does; a task of a group may be named too.
    """
    own = results["models"][results["candidate"]]
    tasks = {**own["tasks"], **own["entries"]}
    rows = []
    for task, published in expected.items():
        if task not in tasks:
            rows.append((task, MISSING, number(published), MISSING, MISSING))
            continue
        difference = tasks[task]["value"] - published
        errors = difference / tasks[task]["stderr"] if tasks[task]["stderr"] > 0 else None
        rows.append(
            (
                task,
                with_error(tasks[task]),
                number(published),
                f"{difference:+.4f}",
                MISSING if errors is None else f"{errors:+.1f}",
            )
        )
    return Table(("task", "measured", "published", "difference", "in standard errors"), tuple(rows))


def lineage_table(lineage: Sequence[Ancestor]) -> Table:
    """Every ancestor with its identity, inputs first."""
    labels = {ancestor.manifest.key: ancestor.manifest.label for ancestor in lineage}
    rows = []
    for ancestor in lineage:
        manifest = ancestor.manifest
        made_of = ", ".join(f"{role}: {labels[record.key]}" for role, record in sorted(manifest.inputs.items()))
        rows.append((manifest.label, manifest.stage, manifest.key[:16], manifest.digest[:16], made_of or MISSING))
    return Table(("step", "stage", "key", "digest", "made of"), tuple(rows))


def metrics_rows(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """All numbers and words of a manifest's metrics, nested names joined by dots; lists are left out."""
    rows: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            rows += metrics_rows(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            rows.append((f"{prefix}{name}", f"{value:.6g}"))
        elif isinstance(value, bool | int | str):
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def ordered_models(results: Mapping[str, Any]) -> list[str]:
    """The names of an evaluation's models: the reference first, the candidate last."""
    ends = (results["reference"], results["candidate"])
    return [ends[0], *sorted(name for name in results["models"] if name not in ends), ends[1]]


def _signed(estimate: Mapping[str, Any], digits: int) -> str:
    return f"{estimate['difference']:+.{digits}f} ± {number(estimate['stderr'], digits)}"
