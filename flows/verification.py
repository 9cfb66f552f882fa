"""`medius verify`: checksums of any artifact, every row of a logit store, and a model once more on a sample of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from flows.addresses import find_artifact, hush_open_sessions, model_of
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, MediusError, ObjectMissingError, WorkerFailedError
from tasks.artifacts.manifest import InputRecord, Manifest
from tasks.artifacts.verify import find_damage
from tasks.dump_logits.recomputed import RECOMPUTED_FILE, Recomputed
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.logits.schema import SCHEMA_FILE
from tasks.runtime.declare import Runtime
from tasks.runtime.devices import Devices, devices_of
from tasks.runtime.launch import launch
from tasks.runtime.launch_folder import SCRATCH, SPEC_FILE, scratch_folder
from tasks.worker.input_cache import INPUTS
from tasks.worker.spec import WorkerSpec

_LINE_SECONDS = 5
_LOOK_SECONDS = 0.5
AUDITED_POSITIONS = 1024
"""Of each store that is compared with another model, where the command line says no number."""


@dataclass(frozen=True)
class Reference:
    """A finished model with which stores are compared, in the place of their teachers."""

    artifact: Artifact
    manifest: Manifest
    max_kl: float | None
    """Nats, the mean that is still no problem; None: only told."""

    @classmethod
    def at(cls, target: str, store: str | None, max_kl: float | None) -> Reference:
        """The model at a URI or with a key.

        Raises:
            BadInputError: there is none, or it is no model.
        """
        artifact, manifest = find_artifact(target, store)
        if manifest.object("config.json") is None:
            raise BadInputError(f"{artifact.uri} is no model, so --against cannot compare with it; name one of a model")
        return cls(artifact, manifest, max_kl)


@dataclass
class Verification:
    """Artifacts are verified one by one; what is found is printed at once and counted."""

    console: Console
    recompute: int = 0
    """Positions of each logit store that its teacher recomputes, or the reference computes."""
    reference: Reference | None = None
    processes: int = 1
    """That hold the teacher, or the reference, together on this host."""
    num_problems: int = 0

    def check(self, label: str, artifact: Artifact, manifest: Manifest) -> None:
        """Verifies one finished artifact."""
        is_logits = manifest.object(SCHEMA_FILE) is not None
        tokens = ""
        if is_logits:
            problems, tokens = self._logits(label, artifact, manifest)
        else:
            problems = find_damage(artifact, manifest)
        state = "DAMAGED" if problems else "ok"
        self.console.print(f"{label:24} {len(manifest.objects)} objects{tokens} {state}", soft_wrap=True)
        if is_logits and self.recompute:
            problems += self._recomputed(artifact, manifest)
        for problem in problems:
            self.console.print(problem, soft_wrap=True, markup=False)
        self.num_problems += len(problems)

    def finish(self) -> None:
        """Raises MediusError where anything was found."""
        if self.num_problems:
            found = "1 problem was" if self.num_problems == 1 else f"{self.num_problems} problems were"
            raise MediusError(
                f"{found} found; to make what is damaged again, delete the manifest.json of its artifact and the "
                f"receipts (shards/) of the objects named, and run again"
            )

    def _logits(self, label: str, artifact: Artifact, manifest: Manifest) -> tuple[list[str], str]:
        from tasks.logits.verify import Checked, verify

        hush_open_sessions()
        said = time.monotonic()
        last: list[Checked] = []

        def watch(checked: Checked) -> None:
            nonlocal said
            last[:] = [checked]
            if time.monotonic() >= said + _LINE_SECONDS:
                said = time.monotonic()
                Console(stderr=True, highlight=False).print(
                    f"{label:24} {checked.shards} of {checked.num_shards} shards, {checked.tokens:,} tokens, "
                    f"{checked.num_problems} problems"
                )

        problems = verify(artifact.store, artifact.directory, manifest, watch)
        return problems, f", {last[0].shards} shards, {last[0].tokens:,} tokens" if last else ""

    def _recomputed(self, artifact: Artifact, manifest: Manifest) -> list[str]:
        if (reference := self.reference) is not None:
            return self._audited(artifact, manifest, reference)
        try:
            model_of(artifact, manifest, ("teacher",))
        except ObjectMissingError as error:
            self.console.print(f"nothing was recomputed: {error}", soft_wrap=True, markup=False)
            return []
        try:
            found = recompute(artifact, manifest, self.recompute, processes=self.processes)
        except WorkerFailedError as error:
            return [f"{artifact.uri}: {error}"]
        for line in found.lines():
            self.console.print(line, soft_wrap=True, markup=False)
        return found.problems(artifact.uri)

    def _audited(self, artifact: Artifact, manifest: Manifest, reference: Reference) -> list[str]:
        name = reference.artifact.uri
        try:
            found = recompute(artifact, manifest, self.recompute, reference, processes=self.processes)
        except WorkerFailedError as error:
            return [f"{artifact.uri} is not compared with {name}: {error}"]
        for line in found.audit(name):
            self.console.print(line, soft_wrap=True, markup=False)
        return [] if reference.max_kl is None else found.beyond(artifact.uri, name, reference.max_kl)


def recompute(
    artifact: Artifact,
    manifest: Manifest,
    num_positions: int,
    reference: Reference | None = None,
    *,
    processes: int = 1,
) -> Recomputed:
    """Runs the teacher, or `reference`, on sampled rows in processes of its own, on the GPUs if there are any.

    Raises:
        BadInputError: the reference is in another store, this host has GPUs, but fewer than `processes`, or this
            installation has no torch.
        WorkerFailedError: the process ended with an error.
    """
    inputs = dict(manifest.inputs)
    if reference is not None:
        if reference.artifact.store.uri != artifact.store.uri:
            raise BadInputError(
                f"{reference.artifact.uri} is in another store than {artifact.uri}; name a model of the same store"
            )
        found = reference.manifest
        inputs["teacher"] = InputRecord(key=found.key, digest=found.digest, directory=reference.artifact.directory)
    attempt = uuid.uuid4().hex[:8]
    launcher: Literal["python", "torchrun"] = "torchrun" if processes > 1 else "python"
    runtime = DumpLogitsRuntime(launcher=launcher, num_processes=processes, tensor_parallel=processes)
    with (
        _devices(runtime, f"recomputing {manifest.label}") as devices,
        scratch_folder(SCRATCH.resolve(), f"recompute-{manifest.key[:16]}", attempt) as scratch,
    ):
        spec = WorkerSpec(
            stage=manifest.stage,
            label=manifest.label,
            key=manifest.key,
            attempt=attempt,
            store=artifact.store.uri,
            directory=artifact.directory,
            scratch=str(scratch),
            input_cache=str(SCRATCH.resolve() / INPUTS),
            recipe={**manifest.recipe, "num_positions": num_positions, "against": reference is not None},
            runtime=runtime.model_dump(mode="json"),
            inputs=inputs,
        )
        spec_file = scratch / SPEC_FILE
        spec_file.write_text(spec.model_dump_json(indent=1))
        process = launch("tasks.dump_logits.recompute", spec_file, runtime, devices)
        try:
            code = process.wait(lambda: None)
        finally:
            process.kill()
        if code != 0:
            end = process.end()
            why = end[1] if end is not None else process.log_tail()
            raise WorkerFailedError(f"the teacher could not be run again ({why})")
        return Recomputed.model_validate_json((scratch / RECOMPUTED_FILE).read_bytes())


@contextmanager
def _devices(runtime: Runtime, label: str) -> Iterator[Devices]:
    """The GPUs that the processes need, waited for while stages have them."""
    said = False
    while True:
        with devices_of(runtime, label) as devices:
            if devices is not None:
                yield devices
                return
        if not said:
            Console(stderr=True, highlight=False).print(f"{label} waits: stages have the accelerators of this host")
            said = True
        time.sleep(_LOOK_SECONDS)
