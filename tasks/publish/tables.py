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

    def transposed(self, first: str) -> Table:
        """Rows as columns; `first` is the heading of what were the headings."""
        (_, *names), *columns = zip(self.columns, *self.rows, strict=True)
        return Table((first, *names), tuple(columns))

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
    return MISSING if estimate is None else f"{number(estimate[key], digits)} ± {number(shown_error(estimate), digits)}"


def shown_error(estimate: Mapping[str, Any]) -> float:
    """The standard error of a single estimate, or what stands for it beside a share of exactly 0 or 1.

    All n items being alike, the deviations say 0, as if nothing else were possible. What is shown then reaches to the
    other end of the score interval at z = 1 (Wilson 1927; Brown, Cai and DasGupta 2001), which for 0 is [0, 1/(n + 1)]
    and for 1 its mirror image. Clusters count instead of items where there are some.
    """
    stderr = float(estimate["stderr"])
    if not _all_alike(estimate):
        return stderr
    return 1 / (estimate.get("clusters", estimate["n"]) + 1)


def _all_alike(estimate: Mapping[str, Any]) -> bool:
    return estimate["stderr"] == 0 and estimate.get("value") in (0, 1) and "n" in estimate


def all_alike_note(results: Mapping[str, Any]) -> str:
    """What ± means beside a share of 0 or 1; empty if there is none."""
    shares = (
        each
        for model in results["models"].values()
        for each in (model["accuracy"], *(share for by in ("tasks", "entries") for share in model.get(by, {}).values()))
    )
    told = "± beside a share of 0 or 1 is 1 / (items + 1), to where Wilson's interval at z = 1 ends."
    return told if any(map(_all_alike, shares)) else ""


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
    told = f"Measured on {measured}; ± is one standard error, differences are paired."
    lines = [" ".join(filter(None, [told, all_alike_note(results)]))]
    against = results["paired"][candidate]
    for other in (name for name in ordered_models(results) if name in against):
        pair = against[other]
        z = pair["accuracy"]["z"]
        text = f"{candidate} minus {other}: accuracy {signed(pair['accuracy'], 3)}"
        text += f" (z {z:.1f})" if z is not None else ""
        if "bits_per_byte" in pair:
            text += f", bits per byte {signed(pair['bits_per_byte'], 4)}"
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


def signed(estimate: Mapping[str, Any], digits: int) -> str:
    """`+0.0120 ± 0.0040`, of a difference."""
    return f"{estimate['difference']:+.{digits}f} ± {number(estimate['stderr'], digits)}"
