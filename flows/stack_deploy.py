"""Makes the work pools and the deployments of a Prefect file, and the alerts of the automations.yaml beside it, on the
server that PREFECT_API_URL names.

python -m flows.stack_deploy infra/prefect.yaml POOL…
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.automations import BLOCK_VARIABLE, deploy_alerts, read_alerts
from flows.prefect_settings import configured_server
from flows.stack_services import POOLS
from tasks.artifacts.errors import MediusError


def make_pools(names: list[str]) -> None:
    """Makes pools whose flow runs are processes, with the limits of POOLS. Those that exist stay as they are, but for a
    limit that they lack.
    """
    client = get_client(sync_client=True)
    for name in names:
        template = ProcessWorker.get_default_base_job_template()
        limit = POOLS[name].limit if name in POOLS else None
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
            )
        except ObjectAlreadyExists:
            if limit is not None and client.read_work_pool(name).concurrency_limit is None:
                client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


if __name__ == "__main__":
    try:
        configured_server().require()
        make_pools(sys.argv[2:])
        deploy_alerts(read_alerts(Path(sys.argv[1]).with_name("automations.yaml")), os.environ.get(BLOCK_VARIABLE))
    except MediusError as error:
        sys.exit(str(error))
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", sys.argv[1]]
    app()
