"""Makes the work pools and the deployments of a Prefect file on the server that PREFECT_API_URL names.

python -m flows.stack_deploy infra/prefect.yaml POOL…
"""

from __future__ import annotations

import sys

from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.stack_services import POOLS


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
    make_pools(sys.argv[2:])
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", sys.argv[1]]
    app()
