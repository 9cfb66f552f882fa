"""Runs one step to a committed artifact: reuse → lease → launch → verify → commit → judge.

A stage whose workers lease shards (`Stage.shared`) is launched without the lease: several runs then make one artifact
together, and only the commit is one run's.

Knows no Prefect, so a stage can be run by a test, by hand or by another orchestrator. The store is the only memory: a
step called again after any interruption goes on from the receipts and checkpoints that stand there.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import (
    BadInputError,
    InterruptedRunError,
    LeaseHeldError,
    ObjectMissingError,
    StaleInputError,
    StoreError,
)
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.lease import Lease
from tasks.artifacts.manifest import MAIN_SHARD, ArtifactRef, InputRecord, Manifest, Provenance, ShardReceipt, digest_of
from tasks.artifacts.redact import redact_file
from tasks.artifacts.store import Store
from tasks.artifacts.timestamp import timestamp
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.devices import Devices, devices_for
from tasks.runtime.event_tail import EventTail
from tasks.runtime.gates import judge, require_passed
from tasks.runtime.launch import WorkerProcess, launch
from tasks.runtime.launch_folder import SPEC_FILE, is_saved_from, scratch_folder
from tasks.runtime.provenance import git_state, hardware, package_versions
from tasks.runtime.worker_end import raise_for_end
from tasks.worker.input_cache import INPUTS
from tasks.worker.spec import Event, WorkerSpec

_LOOK_SECONDS = 0.5


@dataclass
class RunContext:
    """What all steps of one run share."""

    store: Store
    scratch: Path
    """A local folder for launches and for inputs fetched from S3."""
    flow_run: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end every worker of the run: each saves a checkpoint and the step raises InterruptedRunError."""
    watch: Callable[[Step, Event], None] = lambda _step, _event: None
    """Called with every event of every worker, from the thread that runs the step."""
    launched: Callable[[Step], None] = lambda _step: None
    """Called when a worker of the step has been started."""
    stopping: Callable[[Step], None] = lambda _step: None
    """Called before a worker is asked to stop: saving what it has may take longer than this process lasts."""
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(8))
    """How many workers may run at once on this host; a step that finds its artifact finished takes none."""
    lease_wait_seconds: float = 24 * 3600
    elsewhere: Callable[[Step], None] | None = None
    """Makes a step on the work pool that it names, and returns when it is finished; None: all is made here."""
    approve: Callable[[Step], None] | None = None
    """Called before a step that is not finished takes any device; returns when it may begin. None: each may."""
    pool: str | None = None
    """The work pool whose worker this process is of, if any, and that worker's name."""
    pool_worker: str | None = None
    unjudged: frozenset[str] = frozenset()
    """Keys of steps that this run makes to look at, not to go on with: what thresholds its own profile sets on the same
    artifacts, and the verdicts that stand there, are none of its business."""
    passed: dict[str, Manifest] = field(default_factory=dict)
    """Of the steps that this run has found finished and passed, by key: what needs them does not read that again."""


@dataclass(frozen=True)
class Outcome:
    """A finished step."""

    ref: ArtifactRef
    manifest: Manifest
    gates: list[GateResult]
    meanwhile: bool = False
    """Whether another run has finished it while this one waited for it, or made shards of it."""


def execute(step: Step, context: RunContext) -> Outcome:
    """Brings `step` to a committed artifact and judges it.

    Raises:
        GateFailedError: its own verdict or an input's failed.
        StaleInputError: it is finished, but an input has other bytes by now.
        BadInputError, WorkerFailedError: the worker ended with an error; not worth a retry.
        WorkerInterruptedError, TransientStoreError, LeaseHeldError: worth a retry.
        InterruptedRunError: `context.stop` was set.
    """
    artifact = Artifact(context.store, step.directory)
    inputs = _resolve_inputs(step, context)
    manifest = artifact.manifest()
    meanwhile = False
    reused = manifest is not None
    if manifest is None:
        manifest, meanwhile = _build(step, artifact, inputs, context)
        reused = meanwhile
        _say(step, context, "done by another run" if meanwhile else f"done in {manifest.provenance.seconds:.0f} s")
    _require_same_inputs(artifact, manifest, inputs)
    gates = [] if step.key in context.unjudged else judge(step, artifact, manifest)
    context.passed[step.key] = manifest
    ref = ArtifactRef(uri=artifact.uri, directory=step.directory, key=step.key, digest=manifest.digest, reused=reused)
    return Outcome(ref, manifest, gates, meanwhile)


def _say(step: Step, context: RunContext, message: str) -> None:
    context.watch(step, Event(time=time.time(), kind="log", message=message))


def _resolve_inputs(step: Step, context: RunContext) -> dict[str, InputRecord]:
    records = {}
    for role, source in step.inputs.items():
        manifest = context.passed.get(source.key)
        if manifest is None:
            artifact = Artifact(context.store, source.directory)
            manifest = artifact.manifest()
            if manifest is None:
                raise BadInputError(
                    f"{step.label} needs {source.label} ({role}), which is not finished in {context.store.uri}; run "
                    f"that first"
                )
            if source.key not in context.unjudged:
                require_passed(artifact)
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=source.directory)
    return records


def _require_same_inputs(artifact: Artifact, manifest: Manifest, inputs: dict[str, InputRecord]) -> None:
    for role, record in inputs.items():
        made_from = manifest.inputs[role].digest
        if made_from != record.digest:
            raise StaleInputError(
                f"{artifact.uri} was made from {role} {made_from[:12]}…, but {record.directory} now holds "
                f"{record.digest[:12]}…; delete {artifact.uri}/manifest.json and its shards/ folder to rebuild it"
            )


def _resumable_shards(artifact: Artifact, inputs: dict[str, InputRecord]) -> dict[str, ShardReceipt]:
    """The finished shards. Raises StaleInputError where one was made from other input bytes."""
    digests = {role: record.digest for role, record in inputs.items()}
    receipts = artifact.receipts()
    for shard, receipt in receipts.items():
        if receipt.inputs != digests:
            raise StaleInputError(
                f"{artifact.uri} has the shard {shard} of other inputs than stand there now; delete "
                f"{artifact.uri}/shards and run again to make its shards anew"
            )
    return receipts


def _build(
    step: Step, artifact: Artifact, inputs: dict[str, InputRecord], context: RunContext
) -> tuple[Manifest, bool]:
    """Launches the worker, then commits. Another run's result is as good as ours: then (it, True)."""
    started = time.monotonic()
    worker: list[WorkerProcess] = []

    def end_workers() -> None:
        for process in worker:
            process.kill()

    lease = Lease(context.store, artifact.path("lease.json"), step.config.runtime.lease_ttl_seconds, end_workers)
    if step.stage.shared:
        _make(step, artifact, inputs, context, worker)
    if (manifest := _wait_for(lease, step, artifact, context)) is not None:
        return manifest, True
    with lease:
        if (manifest := artifact.manifest()) is not None:
            return manifest, True
        if not step.stage.shared:
            _make(step, artifact, inputs, context, worker, lease)
        lease.require_held()
        return _commit(step, artifact, inputs, context, time.monotonic() - started), False


def _wait_for(lease: Lease, step: Step, artifact: Artifact, context: RunContext) -> Manifest | None:
    """Acquires the lease; if another run finishes the artifact meanwhile, returns its manifest instead."""
    deadline = time.monotonic() + context.lease_wait_seconds
    said = False
    while True:
        _raise_if_stopped(step, context)
        try:
            lease.acquire(wait_seconds=1)
        except LeaseHeldError as error:
            if (manifest := artifact.manifest()) is not None:
                return manifest
            if time.monotonic() >= deadline:
                raise
            if not said:
                _say(step, context, f"waiting: {error}")
                said = True
        else:
            return None


def _make(
    step: Step,
    artifact: Artifact,
    inputs: dict[str, InputRecord],
    context: RunContext,
    worker: list[WorkerProcess],
    lease: Lease | None = None,
) -> None:
    """Launches the worker unless all it does is done: then only the commit was lost."""
    if MAIN_SHARD in _resumable_shards(artifact, inputs):
        return
    with _place(step, context) as devices:
        if lease is not None:
            lease.require_held()
        # Without a lease of the whole, another run may have ended it meanwhile.
        if lease is not None or not context.store.exists(artifact.path(f"shards/{MAIN_SHARD}.json")):
            _launch(step, artifact, inputs, context, uuid.uuid4().hex[:8], worker, lease, devices)


@contextmanager
def _place(step: Step, context: RunContext) -> Iterator[Devices]:
    """One of the run's slots and the accelerators that the worker needs; a step that waits for these keeps no slot."""
    said: set[str] = set()

    def say_once(reason: str) -> None:
        if reason not in said:
            _say(step, context, f"waiting: {reason}")
        said.add(reason)

    while True:
        if not context.slots.acquire(blocking=False):
            say_once("as many other stages are at work as parallel_stages allows")
            context.slots.acquire()
        try:
            _raise_if_stopped(step, context)
            with devices_for(step) as devices:
                if devices is not None:
                    yield devices
                    return
        finally:
            context.slots.release()
        say_once("other stages have the accelerators of this host")
        time.sleep(_LOOK_SECONDS)


def _launch(
    step: Step,
    artifact: Artifact,
    inputs: dict[str, InputRecord],
    context: RunContext,
    attempt: str,
    worker: list[WorkerProcess],
    lease: Lease | None,
    devices: Devices,
) -> None:
    name = f"{sha256_hex(context.store.uri.encode())[:8]}-{step.label}-{step.key[:16]}"
    # Two of them would not fit into the same GPUs, and the checkpoint that it saves is the one to go on from.
    if not step.stage.shared and is_saved_from(context.scratch, name):
        _say(step, context, "waiting: the worker of a stopped run saves its last checkpoint")
        while is_saved_from(context.scratch, name):
            _raise_if_stopped(step, context)
            time.sleep(_LOOK_SECONDS)
    with scratch_folder(context.scratch, name, attempt) as scratch:
        _run_worker(step, artifact, inputs, context, attempt, worker, lease, devices, scratch)


def _run_worker(
    step: Step,
    artifact: Artifact,
    inputs: dict[str, InputRecord],
    context: RunContext,
    attempt: str,
    worker: list[WorkerProcess],
    lease: Lease | None,
    devices: Devices,
    scratch: Path,
) -> None:
    spec = WorkerSpec(
        stage=step.stage.name,
        label=step.label,
        key=step.key,
        attempt=attempt,
        store=context.store.uri,
        directory=step.directory,
        scratch=str(scratch),
        input_cache=str(context.scratch / INPUTS),
        recipe=step.config.recipe.model_dump(mode="json"),
        runtime=step.config.runtime.model_dump(mode="json"),
        inputs=inputs,
    )
    spec_file = scratch / SPEC_FILE
    spec_file.write_text(spec.model_dump_json(indent=1))
    runtime = step.config.runtime
    process = launch(step.stage.worker, spec_file, runtime, devices)
    worker.append(process)
    context.launched(step)
    tail = EventTail(scratch / "events.jsonl", lambda event: context.watch(step, event))

    def poll() -> None:
        tail.read()
        if lease is not None and lease.lost:
            # The lease ends the worker itself, unless it was lost before there was one.
            process.kill()
        elif context.stop.is_set():
            context.stopping(step)
            process.stop(runtime.stop_grace_seconds)

    try:
        code = process.wait(poll)
        tail.read()
        if lease is not None:
            lease.require_held()
        _raise_if_stopped(step, context)
        raise_for_end(step.label, artifact, process, code)
    finally:
        process.kill()
        # The log is for people: where it cannot be kept, what happened to the worker still counts.
        with suppress(StoreError, OSError):
            redact_file(process.log)
            context.store.upload(process.log, artifact.path(f"logs/worker-{attempt}.log"))


def _raise_if_stopped(step: Step, context: RunContext) -> None:
    if context.stop.is_set():
        raise InterruptedRunError(
            f"{step.label} was stopped; run the same command again and it goes on from its last checkpoint or shard"
        )


def _commit(
    step: Step, artifact: Artifact, inputs: dict[str, InputRecord], context: RunContext, seconds: float
) -> Manifest:
    receipts = artifact.receipts()
    objects = artifact.covered_objects(receipts)
    sizes = {entry.path: entry.size for entry in context.store.list(artifact.path("data"))}
    for entry in objects:
        if sizes.get(artifact.path(entry.path)) != entry.size:
            raise ObjectMissingError(
                f"{artifact.uri}/{entry.path} is missing or has another size than its receipt says; delete the receipt "
                f"in {artifact.uri}/shards and run again"
            )
    sha, dirty = git_state()
    attempts = {entry.path.split("/")[1].rpartition("-")[2] for entry in objects}
    return artifact.commit(
        Manifest(
            stage=step.stage.name,
            version=step.stage.version,
            label=step.label,
            key=step.key,
            digest=digest_of(objects),
            recipe=step.config.recipe.model_dump(mode="json"),
            inputs=inputs,
            objects=objects,
            metrics=receipts[MAIN_SHARD].metrics,
            provenance=Provenance(
                write_id=uuid.uuid4().hex,
                created=timestamp(),
                seconds=round(seconds, 3),
                attempts=len(attempts),
                flow_run=context.flow_run,
                pool=context.pool,
                pool_worker=context.pool_worker,
                git_sha=sha,
                git_dirty=dirty,
                hardware=hardware(),
                versions=package_versions(),
                runtime=step.config.runtime.model_dump(mode="json"),
            ),
        )
    )
