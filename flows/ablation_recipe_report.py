"""The arms of a recipe as a table in the terminal, as Markdown, and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.ablation_recipe import ALL, FULL, RecipeArms
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.tables import MISSING, Table, headline, with_error


@dataclass(frozen=True)
class Budget:
    """What an arm was trained on, in all its trainings together."""

    trainings: tuple[str, ...]
    """Labels."""
    steps: int = 0
    tokens: int = 0
    """Read by the student, each time that it read them."""
    targets: int = 0
    """Of these, the ones that it learnt to predict."""


def budget_of(arms: RecipeArms, arm: str, store: Store) -> Budget:
    """Read from the manifests of the arm's trainings, which are finished."""
    trainings = arms.trainings(arm)
    metrics = [m.metrics for step in trainings if (m := Artifact(store, step.directory).manifest()) is not None]
    assert len(metrics) == len(trainings), "an arm that was evaluated is made"
    steps, tokens, targets = (sum(int(each[name]) for each in metrics) for name in ("steps", "tokens", "target_tokens"))
    return Budget(tuple(step.label for step in trainings), steps, tokens, targets)


def arms_table(results: Mapping[str, Any], budgets: Mapping[str, Budget]) -> Table:
    """One row an arm: its budget, what was measured, and the paired difference to the full recipe."""
    rows = []
    for name, budget in budgets.items():
        model, pair = results["models"][name], results["paired"][FULL].get(name)
        rows.append(
            (
                name,
                f"{budget.steps:,}",
                f"{budget.tokens:,}",
                f"{budget.targets:,}",
                with_error(model.get("bits_per_byte")),
                with_error(model["accuracy"], digits=3),
                _minus_full(pair, "bits_per_byte", 4),
                _minus_full(pair, "accuracy", 3),
            )
        )
    columns = ("arm", "steps", "tokens", "targets", "bits per byte", "accuracy")
    return Table((*columns, f"bits per byte minus {FULL}", f"accuracy minus {FULL}"), tuple(rows))


def _minus_full(pair: Mapping[str, Any] | None, key: str, digits: int) -> str:
    """The evaluation has the full recipe minus the arm."""
    if pair is None or key not in pair:
        return MISSING
    z = pair[key]["z"]
    told = f"{0 - pair[key]['difference']:+.{digits}f} ± {pair[key]['stderr']:.{digits}f}"
    return told if z is None else f"{told} (z {0 - z:+.1f})"


def made_of(budgets: Mapping[str, Budget]) -> list[str]:
    """Which trainings made each arm, as sentences."""
    return [f"{name}: {' + '.join(budget.trainings) or 'no training'}" for name, budget in budgets.items()]


def measured_on(results: Mapping[str, Any]) -> str:
    """The sentences under the table."""
    return (
        f"{headline(results, {})[0]} The profile's own evaluation reports none of it. `medius ablate` and the stage "
        f"choose read the same texts: where one of them chose the fusion or a reversion, {ALL} and {FULL} are partly "
        f"lucky in bits per byte, and accuracy is the fairer column. An arm with fewer trainings read fewer tokens."
    )


def write_report(folder: Path, title: str, results: Mapping[str, Any], budgets: Mapping[str, Budget]) -> Path:
    """Writes report.md, results.png and results.svg; returns the path of the first."""
    # Its font cache otherwise goes to the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(".medius/matplotlib").resolve()))
    from tasks.compare.plots import plot_arms

    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        plot_arms(results, list(budgets), FULL, title, folder / f"results.{suffix}")
    parts = [
        f"# {title}",
        arms_table(results, budgets).markdown(),
        measured_on(results),
        _listed(made_of(budgets)),
        "![results](results.png)",
    ]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
