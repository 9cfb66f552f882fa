"""Verdicts on finished artifacts. The artifact is committed first, so a failed gate loses no work; the verdict is an
object beside it, and a consumer refuses an input whose verdict failed until someone accepts it with a reason.
"""

from __future__ import annotations

import time

from tasks.artifacts.artifact import Artifact, decode_record, encode_record
from tasks.artifacts.errors import BadInputError, GateFailedError, ObjectMissingError
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.manifest import Manifest
from tasks.runtime.declare import GateResult, Step


class VerdictEntry(Frozen):
    """One gate's judgement, with the numbers it rests on."""

    gate: str
    passed: bool
    value: float | None
    threshold: float
    comparison: str
    meaning: str


class Verdict(Frozen):
    """All gates of one artifact, as last judged."""

    record: int = 1
    digest: str
    gates: tuple[VerdictEntry, ...]


class Acceptance(Frozen):
    """Someone's decision to go on in spite of a failed gate."""

    record: int = 1
    gate: str
    digest: str
    """Of the artifact that was accepted: rebuilt with other bytes, it must be looked at again."""
    reason: str
    time: float


def judge(step: Step, artifact: Artifact, manifest: Manifest) -> list[GateResult]:
    """Judges a finished artifact by the step's present thresholds and stores the verdict beside it.

    Raises:
        GateFailedError: a gate failed and nobody has accepted it.
    """
    results = step.stage.judge(manifest.metrics, step.config.gates)
    verdict = Verdict(
        digest=manifest.digest,
        gates=tuple(VerdictEntry(**{name: getattr(r, name) for name in VerdictEntry.model_fields}) for r in results),
    )
    path = artifact.path("verdict.json")
    data = encode_record(verdict)
    try:
        if artifact.store.get(path) != data:
            artifact.store.put(path, data)
    except ObjectMissingError:
        if results:
            artifact.store.put(path, data)
    failed = unaccepted(artifact, verdict)
    if failed:
        raise GateFailedError(
            "; ".join(
                f"{step.label}: gate {entry.gate} wants {entry.comparison} {entry.threshold:g}, the value is "
                f"{'missing' if entry.value is None else format(entry.value, '.6g')} ({entry.meaning})"
                for entry in failed
            )
            + f". The result is kept in {artifact.uri}; change the recipe, or go on with "
            + " and ".join(
                f'"medius accept {step.key[:16]} {entry.gate} --store {artifact.store.uri} --reason ..."'
                for entry in failed
            ),
            results,
        )
    return results


def unaccepted(artifact: Artifact, verdict: Verdict) -> list[VerdictEntry]:
    """The failed gates that nobody has accepted."""
    return [
        entry
        for entry in verdict.gates
        if not entry.passed and acceptance_reason(artifact, entry.gate, verdict.digest) is None
    ]


def acceptance_reason(artifact: Artifact, gate: str, digest: str) -> str | None:
    """Why a failed gate of exactly these bytes was accepted, if it was."""
    path = artifact.path(f"acceptances/{gate}.json")
    try:
        record = decode_record(Acceptance, artifact.store.get(path), artifact.store.locate(path))
    except ObjectMissingError:
        return None
    return record.reason if record.digest == digest else None


def read_verdict(artifact: Artifact) -> Verdict | None:
    """The stored verdict, if the artifact was ever judged."""
    path = artifact.path("verdict.json")
    try:
        return decode_record(Verdict, artifact.store.get(path), artifact.store.locate(path))
    except ObjectMissingError:
        return None


def require_passed(artifact: Artifact) -> None:
    """Refuses an input whose verdict failed. Raises GateFailedError."""
    verdict = read_verdict(artifact)
    if verdict is None:
        return
    failed = unaccepted(artifact, verdict)
    if failed:
        names = ", ".join(entry.gate for entry in failed)
        raise GateFailedError(
            f"the input {artifact.uri} failed its gate {names}; rebuild it, or run "
            f'"medius accept {artifact.directory.rpartition("-")[2]} {failed[0].gate} --store {artifact.store.uri} '
            f'--reason ..."'
        )


def accept(artifact: Artifact, gate: str, reason: str) -> None:
    """Records that an artifact may be used although a gate failed.

    Raises:
        BadInputError: there is no such failed gate, or no reason.
    """
    verdict = read_verdict(artifact)
    failed = [entry.gate for entry in verdict.gates if not entry.passed] if verdict else []
    if verdict is None or gate not in failed:
        raise BadInputError(f"{artifact.uri} has no failed gate {gate!r}; failed are: {', '.join(failed) or 'none'}")
    if not reason.strip():
        raise BadInputError("an acceptance needs a reason: --reason TEXT")
    record = Acceptance(gate=gate, digest=verdict.digest, reason=reason, time=time.time())
    artifact.store.put(artifact.path(f"acceptances/{gate}.json"), encode_record(record))
