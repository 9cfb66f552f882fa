"""An ablation as a table in the terminal, as Markdown, and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.ablation_choice import RULE, Choice
from tasks.publish.tables import MISSING, Table, with_error

TAKEN = "chosen"
_KINDS = ("heldout", "prose", "code", "digits", "non_latin")


def results_table(
    results: Mapping[str, Any], others: Sequence[str], candidates: Sequence[str], choice: Choice
) -> Table:
    """One row a model: bits per byte on held-out texts and on each kind, arithmetic, stops, and what became of it."""
    kinds = _kinds(results)
    rows = []
    for name in (*others, *candidates):
        model = results["models"][name]
        verdict = TAKEN if name == choice.taken else choice.reasons.get(name, "")
        if name == results["reference"]:
            verdict = "reference"
        if model["fault"] is not None:
            rows.append((name, *(MISSING for _ in kinds), MISSING, MISSING, verdict or str(model["fault"])))
            continue
        bits = model["bits_per_byte"]
        stops = model["stops"]
        rows.append(
            (
                name,
                with_error(bits["heldout"]),
                *(f"{bits[kind]['value']:.3f}" for kind in kinds[1:]),
                with_error(model["arithmetic"], digits=3),
                f"{stops['stopped']} of {stops['prompts']}" if stops["prompts"] else MISSING,
                verdict,
            )
        )
    names = tuple(kind.replace("_", "-") for kind in kinds[1:])
    return Table(("model", "bits per byte", *names, "arithmetic", "stops", ""), tuple(rows))


def _kinds(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that were measured, in the usual order."""
    found = next(model["bits_per_byte"] for model in results["models"].values() if model["fault"] is None)
    return tuple(kind for kind in _KINDS if kind in found)


def differences_table(results: Mapping[str, Any], candidates: Sequence[str], taken: str) -> Table:
    """Each candidate minus the one that was taken, over the same texts and items."""
    rows = []
    for name in candidates:
        if name == taken or name not in results["paired"]:
            continue
        pair = results["paired"][name][taken]
        cells = []
        for each, digits in ((pair["bits_per_byte"]["heldout"], 4), (pair["arithmetic"], 3)):
            z = f" (z {each['z']:+.1f})" if each["z"] is not None else ""
            cells.append(f"{each['difference']:+.{digits}f} ± {each['stderr']:.{digits}f}{z}")
        rows.append((name, *cells))
    return Table((f"minus {taken}", "bits per byte", "arithmetic"), tuple(rows))


def measured_on(results: Mapping[str, Any]) -> str:
    """The sentence under the table."""
    measured = [model for model in results["models"].values() if model["fault"] is None]
    model, prompts = measured[0], max(model["stops"]["prompts"] for model in measured)
    heldout = model["bits_per_byte"]["heldout"]
    return (
        f"Measured on {heldout['documents']} held-out texts ({heldout['bytes']} bytes) that the evaluation leaves out, "
        f"{model['arithmetic']['n']} sums and {prompts} prompts; ± is one standard error."
    )


def caveats(choice: Choice) -> str:
    """What is to be said beside the choice: what even the best has lost of what the reference can."""
    told = ""
    if choice.stops_lost:
        told += (
            f" It no longer stops on {choice.stops_lost} of the prompts on which the reference stops; none loses fewer."
        )
    if choice.below_reference:
        told += f" Its arithmetic is {choice.below_reference}; look for the cause before this decision."
    return told


def write_report(
    folder: Path,
    title: str,
    results: Mapping[str, Any],
    others: Sequence[str],
    candidates: Sequence[str],
    choice: Choice,
) -> Path:
    """Writes report.md, results.png and results.svg; returns the path of the first."""
    # Its font cache otherwise goes to the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(".medius/matplotlib").resolve()))
    from tasks.compare.plots import plot

    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        plot(results, [*others, *candidates], choice.taken, title, folder / f"results.{suffix}")
    parts = [
        f"# {title}",
        f"Rule, fixed before the measurement: {RULE}.",
        f"Chosen: **{choice.taken}**.{caveats(choice)}" if choice.taken else "Nothing can be chosen.",
        results_table(results, others, candidates, choice).markdown(),
        measured_on(results),
        "![results](results.png)",
    ]
    if choice.taken is not None and len(candidates) > 1:
        parts += [
            "## Differences",
            differences_table(results, candidates, choice.taken).markdown(),
            "Over the same texts and items; ± is the standard error of the paired difference.",
        ]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report
