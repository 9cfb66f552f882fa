"""A deployment for tests: a run whose worker takes as long for its last checkpoint as the test wants."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.opened import gather, open_run
from flows.profiles import load_profile
from tasks.runtime.declare import Step
from tasks.runtime.prefect_task import submit_stage
from tests.infra.guarded_server import PASSWORD, GuardedServer
from tests.runtime.errand import errand

STEPS = 100_000


def step_of(folder: Path) -> Step:
    """The step: its processes leave their numbers in `processes`, and save when there is a file `save`."""
    return errand(
        "a", behaviour="work", steps=STEPS, stop_grace_seconds=300, announce=str(folder / "processes"),
        save_when=str(folder / "save"),
    )  # fmt: skip


@flow(name="saving", persist_result=False)
def saving(folder: str) -> None:
    """Works until it is cancelled."""
    step = step_of(Path(folder))
    with open_run(load_profile("micro"), [step]) as context:
        gather([submit_stage(step, context, [])])


def run_on(server: GuardedServer, pool: str, folder: Path) -> str:
    """Schedules a run for a pool that it makes first; the run's id."""
    (folder / "processes").mkdir()
    with (
        temporary_settings({PREFECT_API_URL: server.ports.api, PREFECT_API_AUTH_STRING: PASSWORD}),
        get_client(sync_client=True) as client,
    ):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
        deployment = client.create_deployment(
            client.create_flow_from_name("saving"),
            "saving",
            work_pool_name=pool,
            path=str(server.folder),
            entrypoint="tests.infra.saving.saving",
            parameters={"folder": str(folder)},
        )
        return str(client.create_flow_run_from_deployment(deployment).id)
