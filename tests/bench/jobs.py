"""A stage's job without a pipeline: folders as committed inputs, the spec of a launch, the commit of what it made."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import file_sha256, sha256_hex
from tasks.artifacts.manifest import InputRecord, Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec


@dataclass(frozen=True)
class JobInputs:
    """A store with a stage's inputs, from which any number of its jobs can be started."""

    stage: str
    store: Store
    folder: Path
    inputs: dict[str, InputRecord]

    def artifact(self, name: str) -> Artifact:
        """What the jobs of this name make."""
        return Artifact(self.store, f"artifacts/{self.stage}/{name}")

    def spec(self, recipe: dict[str, Any], runtime: dict[str, Any], artifact: Artifact) -> WorkerSpec:
        """A new launch that makes this artifact, with a scratch folder of its own."""
        attempt = uuid.uuid4().hex[:8]
        return WorkerSpec(
            stage=self.stage,
            label="bench",
            key=sha256_hex(artifact.directory.encode()),
            attempt=attempt,
            store=self.store.uri,
            directory=artifact.directory,
            scratch=str(self.folder / "scratch" / attempt),
            input_cache=str(self.folder / "inputs"),
            recipe=recipe,
            runtime=runtime,
            inputs=self.inputs,
        )


def run_here(run: Callable[[Job], None], spec: WorkerSpec) -> Job:
    """A worker's `run` in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        job = Job(spec)
        run(job)
    finally:
        # A job takes the signal for a request to save and stop; the bench has nothing to save.
        signal.signal(signal.SIGTERM, handler)
    return job


def commit_folder(store: Store, role: str, folder: Path) -> InputRecord:
    """A folder of files as a finished artifact."""
    artifact = Artifact(store, f"artifacts/models/{role}")
    objects = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        path = f"data/main-00000000/{file.name}"
        store.upload(file, artifact.path(path))
        objects.append(ObjectRecord(name=file.name, path=path, size=file.stat().st_size, sha256=file_sha256(file)))
    return record_of(artifact, finish(artifact, "models", objects))


def commit_job(job: Job) -> InputRecord:
    """Finishes the artifact of a job that has run."""
    objects = job.artifact.covered_objects(job.artifact.receipts())
    return record_of(job.artifact, finish(job.artifact, job.spec.stage, objects))


def finish(artifact: Artifact, stage: str, objects: Sequence[ObjectRecord]) -> Manifest:
    """Writes the manifest of these objects, which are in the store."""
    return artifact.commit(
        Manifest(
            stage=stage, version=1, label="bench", key=sha256_hex(artifact.directory.encode()),
            digest=digest_of(tuple(objects)), recipe={}, inputs={}, objects=tuple(objects), metrics={},
            provenance=Provenance(
                write_id=uuid.uuid4().hex, created="", seconds=0, attempts=1, flow_run=None, git_sha=None,
                git_dirty=None, hardware={}, versions={}, runtime={},
            ),
        )
    )  # fmt: skip


def record_of(artifact: Artifact, manifest: Manifest) -> InputRecord:
    """A finished artifact as another job's input."""
    return InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
