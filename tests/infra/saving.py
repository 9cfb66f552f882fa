"""A deployment for tests: a run whose worker takes as long for its last checkpoint as the test wants."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.opened import gather, open_run
from flows.profiles import load_profile
from tasks.runtime.declare import Step
from tasks.runtime.prefect_task import submit_stage
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
