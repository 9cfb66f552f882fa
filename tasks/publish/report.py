"""What report, model card and command line read of a run's artifacts: results, and tables of trainings and logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.publish.lineage import is_twin
from tasks.publish.tables import MISSING, Table, number


def read_results(store: Store, directory: str) -> dict[str, Any] | None:
    """results.json of a finished evaluation."""
    artifact = Artifact(store, directory)
    manifest = artifact.manifest()
    entry = manifest.object("results.json") if manifest is not None else None
    if entry is None:
        return None
    results: dict[str, Any] = json.loads(store.get(artifact.path(entry.path)))
    return results


def kl_by_model(store: Store, evaluation: str) -> dict[str, dict[str, Any]]:
    """KL to its own teacher, in nats a token, of the evaluated models that came out of a distillation.

    {name: {start, end, before_reversion}}. A model that was moved back into its own vocabulary has the KL of its
    distillation, with before_reversion = True: KL to a teacher of another vocabulary is not defined.
    """
    manifest = Artifact(store, evaluation).manifest()
    if manifest is None:
        return {}
    found = {}
    for role, record in manifest.inputs.items():
        source = Artifact(store, record.directory).manifest()
        reverted = source is not None and "trained" in source.inputs
        if source is not None and reverted:
            source = Artifact(store, source.inputs["trained"].directory).manifest()
        if source is None or source.stage != "distill" or not role.startswith("model."):
            continue
        if source.metrics.get("heldout_kl") is not None:
            found[role.removeprefix("model.")] = {
                "start": source.metrics.get("heldout_kl_start"),
                "end": source.metrics["heldout_kl"],
                "before_reversion": reverted,
            }
    return found


def distillation_table(distilled: Mapping[str, Manifest]) -> Table:
    """Each branch beside its twin: the distillation without a teacher of the same student on the same logits.

    `distilled` holds the manifests of finished distillations by label.
    """

    def same(manifest: Manifest) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((role, record.key) for role, record in manifest.inputs.items()))

    twins = {same(manifest): label for label, manifest in distilled.items() if is_twin(manifest)}
    rows = []
    for label, manifest in distilled.items():
        if is_twin(manifest):
            continue
        end = manifest.metrics.get("heldout_kl")
        twin = twins.get(same(manifest))
        twin_end = distilled[twin].metrics.get("heldout_kl") if twin is not None else None
        rows.append(
            (
                label,
                number(manifest.metrics.get("heldout_kl_start")),
                number(end),
                twin or MISSING,
                number(twin_end),
                f"{twin_end / end:.2f}" if twin_end is not None and end else MISSING,
            )
        )
    return Table(("branch", "KL at start", "KL at end", "twin", "KL of the twin", "twin / branch"), tuple(rows))


def logits_table(dumps: Mapping[str, Manifest]) -> Table:
    """What each store of logits keeps, from the manifests of finished ones by label."""
    rows = []
    for label, manifest in dumps.items():
        metrics = manifest.metrics
        stored = sum(entry.size for entry in manifest.objects)
        rows.append(
            (
                label,
                _support(manifest.recipe.get("support") or {}),
                f"{metrics['tokens']:,}",
                number(metrics.get("bytes_per_token"), 1),
                f"{stored:,}",
                number(metrics.get("captured_mass")),
                number(metrics.get("captured_mass_p10")),
                number(metrics.get("gold_error"), 6),
            )
        )
    columns = (
        "dump",
        "entries a position",
        "tokens",
        "bytes a token",
        "bytes",
        "captured mass",
        "of a tenth, below",
        "gold error",
    )
    return Table(columns, tuple(rows))


def _support(recipe: Mapping[str, Any]) -> str:
    """What a dump keeps, in a few words."""
    if recipe.get("kind") == "adaptive":
        return f"adaptive, at most {recipe.get('max_kept')}"
    if recipe.get("kind") == "sampled":
        return f"{recipe.get('num_draws')} draws"
    return str(recipe.get("num_kept", MISSING))
