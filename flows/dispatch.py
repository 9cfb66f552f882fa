"""A stage on another work pool: flow runs of the pool's deployment make it there, and this run waits for them.

A stage names its pool in `runtime.pool`; the deployment is called single-stage/<pool>. Nothing is handed over but the
profile's name and options: the stage there finds its inputs in the store, and leaves its artifact where this run looks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any, cast

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger

from flows.child_run import ChildRun
from flows.heartbeats import Heartbeats
from flows.run_options import RunOptions
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import (
    BadInputError,
    InterruptedRunError,
    MediusError,
    TransientStoreError,
    WorkerFailedError,
    WorkerInterruptedError,
)
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step

FLOW = "single-stage"
_POLL_SECONDS = 3.0
_STOP_POLL_SECONDS = 1.0


class Dispatch:
    """Makes steps on the pools that they name; to be called in the task of a step."""

    def __init__(
        self,
        profile: str,
        options: RunOptions,
        store: Store,
        stop: Event,
        heartbeats: Heartbeats | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        """
        Args:
            profile: as this run was given it.
            store: where the steps' artifacts are, also for the runs on other pools.
            stop: set to end them.
            heartbeats: by which those are found whose host is gone; None: they are waited for.
        """
        # A worker may have another working folder.
        self._profile = str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile
        # A step comes here after whoever has to approve it has been asked: its own run must not ask once more.
        self._options = RunOptions(overrides=options.overrides, store=store.uri, smoke=options.smoke, approved=True)
        self._store = store
        self._stop = stop
        self._heartbeats = heartbeats
        self._poll_seconds = poll_seconds

    def __call__(self, step: Step) -> None:
        """Returns when the step's artifact is finished, whoever made it.

        Raises:
            BadInputError: its pool has no deployment, or works on another store.
            WorkerFailedError: its flow run failed; with several, all of them ended without the artifact.
            WorkerInterruptedError: its flow run was lost, or the Prefect server is away; worth a retry.
            InterruptedRunError: this run was stopped, or someone cancelled the other one.
        """
        logger = get_run_logger()
        replicas = getattr(step.config.runtime, "replicas", 1)
        children: list[ChildRun] = []
        with get_client(sync_client=True) as client:
            try:
                for replica in range(replicas):
                    children.append(ChildRun(self._start(step, replica)))
                    logger.info(
                        "%s: flow run %s on the pool %s", step.label, children[-1].name, step.config.runtime.pool
                    )
                while not self._stop.wait(self._poll_seconds):
                    if self._is_over(step, children, client, logger):
                        return
            except BaseException:
                # A retry starts others: these would go on beside them, and be waited for by nobody.
                for child in children:
                    if not child.ended:
                        child.cancel(client)
                raise
            self._end(children, step.config.runtime.stop_grace_seconds, client)
        raise InterruptedRunError(
            f"{step.label} was stopped on the pool {step.config.runtime.pool}; start the same run again and it goes on "
            f"from its last checkpoint or shard"
        )

    def _start(self, step: Step, replica: int) -> FlowRun:
        """Creates a flow run; the same one again where this attempt of the task has created it already."""
        deployment = f"{FLOW}/{step.config.runtime.pool}"
        attempt = f"{runtime.flow_run.run_count}-{runtime.task_run.run_count}"
        try:
            run = run_deployment(
                deployment,
                parameters={
                    "stage": step.label,
                    "profile": self._profile,
                    "options": self._options.model_dump(mode="json"),
                    "key": step.key,
                },
                timeout=0,
                as_subflow=True,
                idempotency_key=f"{runtime.flow_run.id}-{attempt}-{step.key[:16]}-{replica}",
            )
        except ObjectNotFound as error:
            raise BadInputError(
                f"{step.label} is for the pool {step.config.runtime.pool}, which has no deployment {deployment}; add "
                f"it to infra/prefect.yaml and deploy that, or name another pool in its runtime"
            ) from error
        except PrefectHTTPStatusError as error:
            if error.response.is_server_error:
                raise _server_away(step, error) from error
            raise BadInputError(
                f"{step.label}: the server refuses a run of {deployment} ({error.response.text[:500]}); deploy "
                f"infra/prefect.yaml as it is here"
            ) from error
        except httpx.HTTPError as error:
            raise _server_away(step, error) from error
        # Its type leaves open whether it was called in a coroutine.
        return cast("FlowRun", run)

    def _is_over(
        self,
        step: Step,
        children: Sequence[ChildRun],
        client: SyncPrefectClient,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> bool:
        for child in children:
            if not child.ended and child.look(client):
                logger.info("%s: flow run %s is %s", step.label, child.name, child.told)
            if child.runs and self._heartbeats is not None:
                silence = self._heartbeats.silence(child.run, child.since)
                if silence is None:
                    continue
                child.give_up(client, silence)
                logger.info("%s: flow run %s has gone silent and is %s", step.label, child.name, child.told)
        if not any(child.ended for child in children):
            return False
        try:
            finished = Artifact(self._store, step.directory).manifest() is not None
        except TransientStoreError:
            return False
        if finished:
            # Those that work see it and end; those that have not begun would come to nothing.
            for child in children:
                if not child.ended and child.waits:
                    child.cancel(client)
            return True
        if all(child.ended for child in children):
            raise self._failure(step, children)
        return False

    def _failure(self, step: Step, children: Sequence[ChildRun]) -> MediusError:
        """Why all flow runs ended without the artifact: of several reasons the one that a retry helps least."""
        by_type = {child.state.type: child for child in reversed(children) if child.state is not None}
        where = f"on the pool {step.config.runtime.pool}"
        if (child := by_type.get(StateType.COMPLETED)) is not None:
            return BadInputError(
                f"{step.label}: flow run {child.name} {where} is done, but {self._store.locate(step.directory)} is not "
                f"there; name a store in the profile that all pools reach, such as s3://bucket/prefix"
            )
        if (child := by_type.get(StateType.FAILED)) is not None:
            return WorkerFailedError(f"{step.label}: flow run {child.name} {where} failed: {child.message}")
        if (child := by_type.get(StateType.CANCELLED)) is not None:
            return InterruptedRunError(
                f"{step.label}: flow run {child.name} {where} was cancelled; start the same run again and it goes on "
                f"from its last checkpoint or shard"
            )
        child = by_type.get(StateType.CRASHED) or children[0]
        return WorkerInterruptedError(
            f"{step.label}: flow run {child.name} {where} was lost ({child.told}: {child.message}); a retry goes on "
            f"from its last checkpoint or shard"
        )

    def _end(self, children: Sequence[ChildRun], grace_seconds: float, client: SyncPrefectClient) -> None:
        """Cancels what has not ended, and waits until it has, at most the grace period."""
        deadline = time.monotonic() + grace_seconds
        for child in children:
            if not child.ended:
                child.cancel(client)
        while time.monotonic() < deadline:
            for child in children:
                if not child.ended:
                    child.look(client)
            if all(child.ended for child in children):
                return
            time.sleep(_STOP_POLL_SECONDS)


def made_here(steps: Sequence[Step]) -> list[Step]:
    """Those of a run's steps that its own process makes: all of them where it came of no deployment."""
    return [step for step in steps if step.config.runtime.pool is None or not runtime.deployment.id]


def dispatch_of_deployment(profile: str, options: RunOptions, store: Store, stop: Event) -> Dispatch | None:
    """What makes a run's steps on their pools; None where it came of no deployment, and so makes all in its process."""
    return Dispatch(profile, options, store, stop, Heartbeats.of_server()) if runtime.deployment.id else None


def _server_away(step: Step, error: Exception) -> WorkerInterruptedError:
    return WorkerInterruptedError(
        f"{step.label}: the Prefect server did not take a flow run for the pool {step.config.runtime.pool} ({error}); "
        f"a retry asks again"
    )
