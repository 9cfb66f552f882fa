"""Upkeep as deployments: a store's garbage, proof that what was committed is whole, runs that ended without a word."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.settings.context import get_current_settings
from pydantic import Field
from rich.console import Console

from flows.addresses import DEFAULT_STORE
from flows.collection import collect
from flows.dag import build
from flows.dead_runs import DeadRuns, own_workers
from flows.heartbeats import OneLook
from flows.prefect_api import PrefectApi
from flows.prefect_settings import configured_server
from flows.profiles import load_profile
from flows.run_options import RUN, ProfileName, RunOptions, StoreUri
from flows.verification import Verification
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.redact import redact
from tasks.artifacts.store import open_store
from tasks.runtime.log_redaction import without_credentials

_WIDTH = 160


class GarbageOptions(Frozen):
    """What is kept; as the flags of `medius gc`."""

    store: StoreUri | None = Field(None, description="Otherwise MEDIUS_STORE of the worker, or .medius/store.")
    profiles: tuple[Annotated[str, Field(pattern=r"\.ya?ml$")], ...] = Field(
        (), description="Further profiles whose artifacts are kept; those of configs/ always are."
    )
    keep_days: float = Field(30, ge=0, description="Runs of the last days keep what they made or used.")
    grace_hours: float = Field(24, ge=1, description="What was written in the last hours is kept.")
    delete: bool = Field(False, description="Without this it is only listed.")


GARBAGE = GarbageOptions()


@flow(name="collect-garbage", retries=0, persist_result=False)
def collect_garbage(options: GarbageOptions = GARBAGE) -> None:
    """Lists, or removes, what no profile, retained run or lease needs."""
    with without_credentials(), _page("garbage", "What nothing needs") as console:
        collect(
            open_store(options.store or DEFAULT_STORE),
            console,
            options.profiles,
            options.keep_days,
            options.grace_hours,
            delete=options.delete,
        )


@flow(name="verify", flow_run_name="{profile}", retries=0, persist_result=False)
def verify_profile(profile: ProfileName = "tiny", options: RunOptions = RUN) -> None:
    """Reads every byte of a profile's finished artifacts and compares it with its checksum; of logits, every row."""
    with without_credentials():
        loaded = load_profile(profile, options.overrides, options.store, smoke=options.smoke)
        store = open_store(loaded.store)
        with _page("verification", f"What of {loaded.name} is whole") as console:
            verification = Verification(console)
            for step in build(loaded):
                artifact = Artifact(store, step.directory)
                if (manifest := artifact.manifest()) is not None:
                    verification.check(step.label, artifact, manifest)
            verification.finish()


@flow(name="mark-dead-runs", retries=0, persist_result=False)
def mark_dead_runs(store: StoreUri | None = None) -> None:
    """Marks the runs whose process is gone without a word, on the server and in the store: those of this host by its
    processes, those of others by their heartbeats.

    Args:
        store: where the records of runs are; otherwise MEDIUS_STORE of the worker, or .medius/store.
    """
    with without_credentials():
        api = configured_server()
        deployment, now = runtime.deployment.id, datetime.now(UTC)
        if deployment is not None:
            # After a night without a worker there is a late one for each minute of it, and one look is enough.
            _delete_runs(api, str(deployment), ["SCHEDULED"], expected_start_time={"before_": now.isoformat()})
        frequency = get_current_settings().flows.heartbeat_frequency
        DeadRuns(
            api,
            open_store(store or DEFAULT_STORE),
            own_workers(),
            tell=get_run_logger().info,
            feed=None if frequency is None else OneLook(api, frequency),
        ).mark()
        if deployment is not None:
            # Once a minute: what is of interest is what was marked, not the looking.
            ended = {"before_": (now - timedelta(hours=1)).isoformat()}
            _delete_runs(api, str(deployment), ["COMPLETED", "CANCELLED"], end_time=ended)


def _delete_runs(api: PrefectApi, deployment: str, states: Sequence[str], **more: Any) -> None:
    wanted = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": list(states)}}, **more}
    # The server deletes 50 at a time.
    while api.post("/flow_runs/bulk_delete", {"flow_runs": wanted})["deleted"]:
        pass


@contextmanager
def _page(key: str, description: str) -> Iterator[Console]:
    """A console whose text becomes an artifact of the flow run and a part of its log, however the block ends."""
    text = io.StringIO()
    try:
        yield Console(file=text, width=_WIDTH, highlight=False)
    finally:
        get_run_logger().info("%s", text.getvalue())
        try:
            create_markdown_artifact(f"```\n{redact(text.getvalue())}```", key=key, description=description)
        except Exception as error:
            # What happened in the block counts; its text is in the log.
            get_run_logger().warning("the dashboard could not be told: %s", error)
