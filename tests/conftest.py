"""Stand-ins for the runtime where a test needs one stage alone: real workers and artifacts, no orchestration."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import artifact_key, sha256_hex
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord, Manifest, Provenance, digest_of
from tasks.artifacts.store import Store, open_store
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec
from tests.seaweed import BUCKET, SeaweedServer

_LONGEST_FIRST = ("tests/e2e/", "tests/faults/", "tests/infra/", "tests/flows/", "tests/training/")
"""Folders whose files take minutes: begun last, one of them would keep one process busy after the others have ended."""


@pytest.fixture
def own_environment() -> Iterator[None]:
    """The worker sets variables for its own process, which in some tests is everybody's."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, folder in enumerate(_LONGEST_FIRST) if folder in path), len(_LONGEST_FIRST))

    items.sort(key=place)


ArtifactOf = Callable[..., Artifact]
RunStage = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store on local disk."""
    return open_store(str(tmp_path / "store"))


def _spec(tmp_path: Path, store: Store, stage: str, key: str, **fields: Any) -> WorkerSpec:
    attempt = uuid.uuid4().hex[:8]
    return WorkerSpec(
        stage=stage,
        label=fields.pop("label", stage),
        key=key,
        attempt=attempt,
        store=store.uri,
        directory=f"artifacts/{stage}/{fields.pop('folder', stage)}-{key[:16]}",
        scratch=str(tmp_path / "scratch" / attempt),
        input_cache=str(tmp_path / "inputs"),
        **{"recipe": {}, "runtime": {}, "inputs": {}, **fields},
    )


def _commit(job: Job) -> Artifact:
    receipts = job.receipts()
    objects = job.artifact.covered_objects(receipts)
    job.artifact.commit(
        Manifest(
            stage=job.spec.stage,
            version=1,
            label=job.spec.label,
            key=job.spec.key,
            digest=digest_of(objects),
            recipe=job.spec.recipe,
            inputs=job.spec.inputs,
            objects=objects,
            metrics=receipts[MAIN_SHARD].metrics,
            provenance=Provenance(
                write_id=uuid.uuid4().hex,
                created="",
                seconds=0,
                attempts=1,
                flow_run=None,
                git_sha=None,
                git_dirty=None,
                hardware={},
                versions={},
                runtime={},
            ),
        )
    )
    return job.artifact


@pytest.fixture
def artifact_of(tmp_path: Path, store: Store) -> ArtifactOf:
    """artifact_of(directory, metrics={}) commits a folder of files as a finished artifact."""

    def make(directory: Path, metrics: Mapping[str, Any] | None = None) -> Artifact:
        key = sha256_hex(uuid.uuid4().bytes)
        job = Job(_spec(tmp_path, store, "models", key))
        job.complete(directory, dict(metrics or {}))
        return _commit(job)

    return make


@pytest.fixture
def run_stage(tmp_path: Path, store: Store, artifact_of: ArtifactOf) -> RunStage:
    """run_stage(stage, recipe, inputs, runtime={}) runs a worker in this process and commits what it made.

    An input is an Artifact or a folder of files. A second call with equal arguments goes on from the receipts and
    checkpoints that the first left behind. An error of the worker reaches the test as it is.
    """

    def run(
        stage: str,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, Artifact | Path],
        runtime: Mapping[str, Any] | None = None,
    ) -> Artifact:
        records = {}
        for role, value in inputs.items():
            artifact = value if isinstance(value, Artifact) else artifact_of(value)
            manifest = artifact.manifest()
            assert manifest is not None, f"the input {role} is not finished"
            records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
        key = artifact_key(stage, 1, dict(recipe), {role: record.key for role, record in records.items()})
        job = Job(_spec(tmp_path, store, stage, key, recipe=dict(recipe), runtime=dict(runtime or {}), inputs=records))
        importlib.import_module(f"tasks.{stage}.worker").run(job)
        return _commit(job)

    return run


@pytest.fixture
def cuda() -> str:
    """The device of the tests that are marked `gpu`."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    """An S3 server with a bucket, and the environment that leads to it."""
    seaweed = SeaweedServer(tmp_path / "seaweed")
    seaweed.start()
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    yield seaweed
    seaweed.kill()
