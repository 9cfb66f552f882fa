"""Names of stages and of what they tell in Prefect's event feed (infra/automations.yaml); loads no Prefect."""

from __future__ import annotations

PROGRESS = "medius.stage.progress"
SLOW = "medius.stage.slow"
ENDED = "medius.stage.ended"


def resource_of(run: str, task: str) -> dict[str, str]:
    """A stage in a flow run, by the name of its task run there."""
    return {"prefect.resource.id": f"medius.stage.{run}.{task}", "prefect.resource.name": task}
