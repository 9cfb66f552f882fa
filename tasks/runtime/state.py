"""Where a step stands, told from the store alone, and why: the reasons behind `medius plan`, `status` and `explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts.artifact import Artifact, decode_record
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.lease import LeaseRecord, holder_is_dead
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step
from tasks.runtime.gates import read_verdict, unaccepted

LOOKS = 8
"""Steps that are looked at at one time."""
StateName = Literal["finished", "gate failed", "stale", "working", "started", "missing"]


@dataclass(frozen=True)
class StepState:
    """One step's state in a store. `reason` is a sentence for people."""

    step: Step
    state: StateName
    reason: str
    manifest: Manifest | None = None


def step_state(step: Step, store: Store) -> StepState:
    """Looks at manifest, verdict, inputs, receipts and lease; reads no data object."""
    return step_states([step], store)[0]


def step_states(steps: Sequence[Step], store: Store) -> list[StepState]:
    """`step_state` of each, side by side: on S3 it is a handful of small requests, which mostly wait.

    A manifest is read once, however many of the steps have it among their inputs.
    """
    looked_at = [*steps, *(source for step in steps for source in step.inputs.values())]
    artifacts = {step.directory: Artifact(store, step.directory) for step in looked_at}
    with ThreadPoolExecutor(LOOKS, thread_name_prefix="state") as pool:
        found = pool.map(Artifact.manifest, artifacts.values())
        manifests = dict(zip(artifacts, found, strict=True))
        return list(pool.map(lambda step: _state(step, store, manifests), steps))


def _state(step: Step, store: Store, manifests: Mapping[str, Manifest | None]) -> StepState:
    artifact = Artifact(store, step.directory)
    manifest = manifests[step.directory]
    if manifest is not None:
        for role, source in step.inputs.items():
            present = manifests[source.directory]
            if present is not None and present.digest != manifest.inputs[role].digest:
                return StepState(step, "stale", f"{role} has other bytes by now", manifest)
        verdict = read_verdict(artifact)
        failed = unaccepted(artifact, verdict) if verdict else []
        if failed:
            return StepState(step, "gate failed", ", ".join(entry.gate for entry in failed), manifest)
        return StepState(step, "finished", f"digest {manifest.digest[:12]}", manifest)
    # Of most that are not finished nothing is there yet: one look tells what is worth a second.
    there = store.children(step.directory)
    saved = ""
    if "shards" in there and (num_shards := sum(1 for _ in store.list(artifact.path("shards")))):
        saved = f"{num_shards} shards"
    if "checkpoints" in there and (checkpoints := checkpoint_lists(artifact)):
        _, newest = checkpoints[0]
        saved = f"checkpoint at step {newest}"
    # A stage whose workers share its shards has a lease for each that is being made.
    leases = [artifact.path(name) for name in there & {"lease.json"}]
    if "leases" in there:
        leases += [entry.path for entry in store.list(artifact.path("leases"))]
    holder = next((record for path in leases if (record := _live_holder(store, path)) is not None), None)
    if holder is not None:
        return StepState(step, "working", f"process {holder.process} on {holder.host}; {saved or 'nothing saved yet'}")
    if saved:
        return StepState(step, "started", f"{saved}, to be resumed")
    missing = sum(manifests[source.directory] is None for source in step.inputs.values())
    return StepState(step, "missing", f"{missing} inputs are missing" if missing else "ready to run")


def _live_holder(store: Store, path: str) -> LeaseRecord | None:
    try:
        there = store.read(path)
    except ObjectMissingError:
        return None
    record = decode_record(LeaseRecord, there.data, store.locate(path))
    expired = there.modified + record.ttl_seconds <= store.now()
    return None if expired or holder_is_dead(record) else record


def explain(step: Step, store: Store) -> list[str]:
    """Why this step has the key it has: the fields in which it differs from the nearest finished artifact."""
    mine = _identity(
        step.stage.version,
        step.config.recipe.model_dump(mode="json"),
        {role: source.key for role, source in step.inputs.items()},
    )
    best: tuple[list[str], Manifest] | None = None
    for entry in store.list(f"artifacts/{step.stage.name}"):
        if not entry.path.endswith("/manifest.json"):
            continue
        manifest = Artifact(store, entry.path.removesuffix("/manifest.json")).manifest()
        if manifest is None:
            continue
        if manifest.key == step.key:
            return [f"{step.label} is finished: key {step.key[:16]}, digest {manifest.digest[:16]}"]
        theirs = _identity(
            manifest.version, manifest.recipe, {role: record.key for role, record in manifest.inputs.items()}
        )
        fields = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        lines = [f"  {name}: {theirs.get(name, 'absent')} → {mine.get(name, 'absent')}" for name in fields]
        # Of equally near ones the same label is the likelier ancestor.
        rank = (len(lines), manifest.label != step.label)
        if best is None or rank < (len(best[0]), best[1].label != step.label):
            best = (lines, manifest)
    if best is None:
        return [f"{step.label} has key {step.key[:16]}; no {step.stage.name} artifact is finished in this store"]
    lines, manifest = best
    return [f"{step.label} has key {step.key[:16]}; the nearest finished one is {manifest.key[:16]}:", *lines]


def _identity(version: int, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    flat = {f"inputs.{role}": key[:16] for role, key in inputs.items()}
    flat["version"] = str(version)
    _flatten(recipe, "recipe", flat)
    return flat


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}", into)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _flatten(item, f"{name}[{index}]", into)
    else:
        into[name] = value
