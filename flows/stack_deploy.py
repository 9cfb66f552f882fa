"""Makes the work pools, queues and deployments of a Prefect file, and the alerts of the automations.yaml beside it, on
the server that PREFECT_API_URL names.

python -m flows.stack_deploy infra/prefect.yaml [POOL…]      further pools than those of its deployments
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.automations import MissingBlockError, deploy_alerts, read_alerts
from flows.prefect_settings import configured_server
from flows.stack_services import ALERT_BLOCK_VARIABLE, POOLS
from tasks.artifacts.errors import BadInputError, MediusError


def make_pools(names: list[str]) -> None:
    """Makes pools whose flow runs are processes, with the limits of POOLS. Those that exist stay as they are, but for a
    limit that they lack.
    """
    with get_client(sync_client=True) as client:
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


def pools_of(content: dict[str, Any]) -> set[str]:
    """Names of the pools of a Prefect file's deployments."""
    return {entry["work_pool"]["name"] for entry in content["deployments"]}


def make_queues(content: dict[str, Any], without: Collection[str] = ()) -> None:
    """Makes the work queues of a Prefect file's deployments, with the limits that its `definitions.queues` says. Those
    that exist stay as they are, but for a limit that they lack.
    """
    limits: dict[str, int] = content.get("definitions", {}).get("queues", {})
    pools = [entry["work_pool"] for entry in content["deployments"] if entry["name"] not in without]
    queued = [(each["name"], each["work_queue_name"]) for each in pools if "work_queue_name" in each]
    if unknown := sorted({queue for _, queue in queued if queue not in limits}):
        raise BadInputError(
            f"definitions.queues says no limit for {', '.join(unknown)}; add one there, or take work_queue_name away"
        )
    with get_client(sync_client=True) as client:
        for pool, queue in queued:
            try:
                client.create_work_queue(queue, concurrency_limit=limits[queue], work_pool_name=pool)
            except ObjectAlreadyExists:
                found = client.read_work_queue_by_name(queue, work_pool_name=pool)
                if found.concurrency_limit is None:
                    client.update_work_queue(found.id, concurrency_limit=limits[queue])


def deploy(prefect_file: Path, without: Collection[str] = ()) -> None:
    """Makes the deployments of a Prefect file but for some with their queues, and the alerts of the automations.yaml
    beside it.

    Where there is no block to tell, the alerts are made without: it can only be made on the dashboard of a server that
    is up.

    Raises:
        BadInputError: automations.yaml is none, or the Prefect file limits a queue nowhere.
        SystemExit: `prefect deploy` failed.
    """
    alerts = read_alerts(prefect_file.with_name("automations.yaml"))
    content = yaml.safe_load(prefect_file.read_text())
    # Before the deployments: for those a queue that does not exist is made without a limit.
    make_queues(content, without)
    chosen = ["--all"]
    if without:
        names = [entry["name"] for entry in content["deployments"]]
        chosen = [word for name in names if name not in without for word in ("--name", name)]
    sys.argv = ["prefect", "--no-prompt", "deploy", *chosen, "--prefect-file", str(prefect_file)]
    try:
        app()
    except SystemExit as ended:
        if ended.code:
            raise
    try:
        deploy_alerts(alerts, os.environ.get(ALERT_BLOCK_VARIABLE))
    except MissingBlockError as error:
        deploy_alerts(alerts)
        print(f"{error}; until then the alerts fire into the event feed alone", file=sys.stderr)


if __name__ == "__main__":
    try:
        configured_server().require()
        file, *more = sys.argv[1:]
        make_pools(sorted({*pools_of(yaml.safe_load(Path(file).read_text())), *more}))
        deploy(Path(file))
    except MediusError as error:
        sys.exit(str(error))
