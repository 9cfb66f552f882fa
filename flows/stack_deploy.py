"""Makes the work pools and the deployments of a Prefect file on the server that PREFECT_API_URL names.

python -m flows.stack_deploy infra/prefect.yaml POOL…
"""

from __future__ import annotations

import sys

from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker


def make_pools(names: list[str]) -> None:
    """Makes pools whose flow runs are processes; those that exist stay as they are."""
    client = get_client(sync_client=True)
    for name in names:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            continue


if __name__ == "__main__":
    make_pools(sys.argv[2:])
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", sys.argv[1]]
    app()
