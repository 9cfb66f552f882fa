"""The arms of a recipe as a table in the terminal, as Markdown, and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.ablation_recipe import ALL, FULL, RecipeArms
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.tables import MISSING, Table, headline, with_error

_ROUNDING = 0.01
"""The last step of a training takes as many rows as the others, so that equal budgets differ by some rows."""


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


def pairs_of(arms: RecipeArms, store: Store) -> dict[str, dict[str, Any]]:
    """Of each arm but the full recipe, itself minus the one that it is compared with: {accuracy, bits_per_byte}.

    Made of the items and documents that the evaluation keeps of each model: what it pairs itself is only its candidate
    with all, and all with its reference.
    """
    # Needs numpy, as the picture does.
    from tasks.evaluate.results import Measured, pair

    artifact = Artifact(store, arms.evaluation.directory)
    manifest = artifact.manifest()
    assert manifest is not None, "results were read of it"

    def lines(name: str) -> list[dict[str, Any]]:
        entry = manifest.object(name)
        data = store.get(artifact.path(entry.path)) if entry is not None else b""
        return [json.loads(line) for line in data.split(b"\n") if line]

    measured = {
        name: Measured(lines(f"samples/{name}.jsonl"), lines(f"documents/{name}.jsonl"), {}) for name in arms.arms
    }
    against = {name: other for name in arms.arms if (other := arms.compared_with(name)) is not None}
    return {name: pair((name, other), measured[name], measured[other]) for name, other in against.items()}


def arms_table(results: Mapping[str, Any], budgets: Mapping[str, Budget]) -> Table:
    """One row an arm: its budget, and what was measured."""
    rows = [
        (
            name,
            f"{budget.steps:,}",
            f"{budget.tokens:,}",
            f"{budget.targets:,}",
            with_error(results["models"][name].get("bits_per_byte")),
            with_error(results["models"][name]["accuracy"], digits=3),
        )
        for name, budget in budgets.items()
    ]
    return Table(("arm", "steps", "tokens", "targets", "bits per byte", "accuracy"), tuple(rows))


def pairs_table(
    budgets: Mapping[str, Budget], against: Mapping[str, str | None], pairs: Mapping[str, Mapping[str, Any]]
) -> Table:
    """One row an arm but the full recipe: its paired difference to the arm that it is compared with.

    Args:
        against: of each arm, the one that it is compared with, None for the full recipe.
        pairs: as `pairs_of` makes them.
    """
    rows = [
        (
            name,
            other,
            _share(budgets[name], budgets[other]),
            _difference(pairs[name], "bits_per_byte", 4),
            _difference(pairs[name], "accuracy", 3),
        )
        for name, other in against.items()
        if other is not None
    ]
    return Table(("arm", "minus", "of its tokens", "bits per byte", "accuracy"), tuple(rows))


def _share(budget: Budget, other: Budget) -> str:
    return f"{100 * budget.tokens / other.tokens:.0f} %" if other.tokens else MISSING


def _difference(pair: Mapping[str, Any], key: str, digits: int) -> str:
    if key not in pair:
        return MISSING
    z = pair[key]["z"]
    told = f"{pair[key]['difference']:+.{digits}f} ± {pair[key]['stderr']:.{digits}f}"
    return told if z is None else f"{told} (z {z:+.1f})"


def made_of(budgets: Mapping[str, Budget]) -> list[str]:
    """Which trainings made each arm, as sentences."""
    return [f"{name}: {' + '.join(budget.trainings) or 'no training'}" for name, budget in budgets.items()]


def measured_on(results: Mapping[str, Any], budgets: Mapping[str, Budget], against: Mapping[str, str | None]) -> str:
    """The sentences under the table."""
    # Untrained or not fine-tuned, an arm is to differ in what it spent.
    pairs = [(budgets[name].tokens, budgets[other].tokens) for name, other in against.items() if other and name != ALL]
    alike = all(abs(spent - other) < _ROUNDING * other for spent, other in pairs if spent)
    return (
        f"{headline(results, {})[0]} The profile's own evaluation reports none of it. `medius ablate` and the stage "
        f"choose read the same texts: where one of them chose the fusion or a reversion, {ALL} and {FULL} are partly "
        f"lucky in bits per byte, and accuracy is the fairer column. An arm is compared with the one of all teachers "
        f"that is fine-tuned like itself, and {ALL} with {FULL}. A teacher alone trained one branch for as many steps "
        f"as all branches together"
        + (
            ", so that arms differ in teachers and not in tokens."
            if alike
            else "; the column says what each arm spent."
        )
    )


def write_report(
    folder: Path, title: str, results: Mapping[str, Any], budgets: Mapping[str, Budget], differences: Table, told: str
) -> Path:
    """Writes report.md with both tables and what is told of them, results.png and results.svg; returns the first."""
    # Its font cache otherwise goes to the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(".medius/matplotlib").resolve()))
    from tasks.compare.plots import plot_arms

    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        plot_arms(results, list(budgets), FULL, title, folder / f"results.{suffix}")
    parts = [
        f"# {title}",
        arms_table(results, budgets).markdown(),
        differences.markdown(),
        told,
        _listed(made_of(budgets)),
        "![results](results.png)",
    ]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
