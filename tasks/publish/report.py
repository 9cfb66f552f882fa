"""The report of a run as Markdown: its steps, gates, dumps, trainings and results, from what the store holds.

An unfinished or failed run has a report too: it says of every step what state it is in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.publish.lineage import is_twin
from tasks.publish.tables import (
    MISSING,
    Table,
    headline,
    metrics_rows,
    nearness_table,
    number,
    results_table,
    tasks_table,
)
from tasks.runtime.gates import acceptance_reason, read_verdict

Step = tuple[str, str, str, str]
"""label, stage, directory in the store, state."""
_Block = Table | str


def write_report(
    store: Store,
    steps: Sequence[Step],
    target: Path,
    profile_name: str,
    expected: Mapping[str, float] | None = None,
) -> Path:
    """Writes the report of these steps to `target`, and returns it. tasks/publish/page has the one for a browser.

    Args:
        steps: (label, stage, directory, state) of each step, inputs before what uses them.
        expected: published value of each task, to be set beside the measured ones.
    """
    title = f"Run of the profile {profile_name}"
    sections = _sections(store, steps, expected)
    page = _markdown(title, sections)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


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


def _sections(
    store: Store, steps: Sequence[Step], expected: Mapping[str, float] | None
) -> list[tuple[str, list[_Block]]]:
    manifests = {label: Artifact(store, directory).manifest() for label, _, directory, _ in steps}
    finished = {label: manifest for label, manifest in manifests.items() if manifest is not None}
    sections: list[tuple[str, list[_Block]]] = [("Steps", [_steps_table(steps, finished)])]
    gates = _gates_table(store, steps)
    sections.append(("Gates", [gates if gates.rows else "No step has been judged yet."]))
    stored = ("dump_logits", "import_logits")
    dumps = {label: finished[label] for label, stage, _, _ in steps if stage in stored and label in finished}
    if dumps:
        sections.append(("Stored logits", [logits_table(dumps)]))
    distilled = {label: finished[label] for label, stage, _, _ in steps if stage == "distill" and label in finished}
    if distilled:
        note = "KL to the branch's own teacher on held-out text, nats a token; a ratio above 1 favours the branch."
        sections.append(("Distillation", [note, distillation_table(distilled)]))
    for label, stage, directory, _ in steps:
        results = read_results(store, directory) if stage == "evaluate" else None
        if results is None:
            continue
        kl = kl_by_model(store, directory)
        sections.append(
            (f"Results of {label}", [results_table(results, kl), *headline(results, kl), tasks_table(results)])
        )
        if expected:
            sections.append(("Beside the published card", [nearness_table(results, expected)]))
    # The results above say better what the metrics of an evaluation repeat.
    figures = {label: manifest for label, manifest in finished.items() if manifest.stage != "evaluate"}
    rows = [(label, *row) for label, manifest in figures.items() for row in metrics_rows(manifest.metrics)]
    if rows:
        sections.append(("All metrics", [Table(("step", "metric", "value"), tuple(rows))]))
    return sections


def _steps_table(steps: Sequence[Step], finished: Mapping[str, Manifest]) -> Table:
    labels = {manifest.key: label for label, manifest in finished.items()}
    rows = []
    for label, stage, directory, state in steps:
        manifest = finished.get(label)
        key = manifest.key[:16] if manifest is not None else directory.rpartition("-")[2]
        made_of, digest, seconds = MISSING, MISSING, MISSING
        if manifest is not None:
            inputs = sorted(manifest.inputs.items())
            made_of = ", ".join(f"{role}: {labels.get(each.key, each.key[:16])}" for role, each in inputs) or MISSING
            digest, seconds = manifest.digest[:16], f"{manifest.provenance.seconds:.0f}"
        rows.append((label, stage, state, key, digest, made_of, seconds))
    return Table(("step", "stage", "state", "key", "digest", "made of", "seconds"), tuple(rows))


def _gates_table(store: Store, steps: Sequence[Step]) -> Table:
    rows = []
    for label, _, directory, _ in steps:
        artifact = Artifact(store, directory)
        verdict = read_verdict(artifact)
        for gate in verdict.gates if verdict else ():
            said = "passed" if gate.passed else "failed"
            if not gate.passed and verdict is not None:
                reason = acceptance_reason(artifact, gate.gate, verdict.digest)
                said = f"accepted: {reason}" if reason is not None else said
            value = MISSING if gate.value is None else f"{gate.value:.6g}"
            rows.append((label, gate.gate, value, f"{gate.comparison} {gate.threshold:g}", said, gate.meaning))
    return Table(("step", "gate", "value", "wanted", "verdict", "meaning"), tuple(rows))


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


def _markdown(title: str, sections: Sequence[tuple[str, list[_Block]]]) -> str:
    parts = [f"# {title}"]
    for heading, blocks in sections:
        parts.append(f"## {heading}")
        parts += [block.markdown() if isinstance(block, Table) else block for block in blocks]
    return "\n\n".join(parts) + "\n"
