"""infra/process-job-template.json: credentials out of Prefect's Secret blocks, in the environment of runs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.templating import find_placeholders
from prefect.workers.process import ProcessWorker

from flows.stack import CHECKOUT
from tasks.artifacts.store import open_store
from tests.infra.guarded_server import PASSWORD, GuardedServer
from tests.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedServer

FILE = CHECKOUT / "infra" / "process-job-template.json"
POOL = "from-blocks"
BLOCKS = {"aws-access-key-id": ACCESS_KEY, "aws-secret-access-key": SECRET_KEY}


def template() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text())
    return loaded


def test_the_template_is_prefects_own_with_the_names_of_blocks() -> None:
    named = template()
    environment = named["variables"]["properties"]["env"].pop("default")
    own = ProcessWorker.get_default_base_job_template()
    own["variables"]["properties"]["env"].pop("default", None)
    assert named == own
    assert set(environment) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    found = {placeholder.name for value in environment.values() for placeholder in find_placeholders(value)}
    assert found == {f"prefect.blocks.secret.{block}" for block in BLOCKS}


def test_no_deployment_names_a_block() -> None:
    # `prefect deploy` would put the block's value into the deployment, for all to read.
    assert "prefect.blocks" not in (CHECKOUT / "infra" / "prefect.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_run_reaches_the_store_with_what_blocks_hold(
    guarded: GuardedServer, server: SeaweedServer, tmp_path: Path
) -> None:
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(guarded.environment), "workers have none"
    store = f"s3://{BUCKET}/blocks"
    adapted = template()
    adapted["variables"]["properties"]["env"]["default"] |= {
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    file = tmp_path / "template.json"
    file.write_text(json.dumps(adapted))
    said = guarded.module("prefect", "work-pool", "create", POOL, "--type", "process", "--base-job-template", str(file))
    assert said.returncode == 0, said
    with (
        temporary_settings({PREFECT_API_URL: guarded.ports.api, PREFECT_API_AUTH_STRING: PASSWORD}),
        get_client(sync_client=True) as client,
    ):
        for name, value in BLOCKS.items():
            Secret(value=value).save(name)
        deployment = client.create_deployment(
            client.create_flow_from_name("single-stage"),
            "from-blocks",
            work_pool_name=POOL,
            path=str(guarded.folder),
            entrypoint="flows.single_stage.single_stage",
            parameters={"profile": "micro", "stage": "model-base", "options": {"smoke": True, "store": store}},
        )
        run = client.create_flow_run_from_deployment(deployment).id
    guarded.start_worker(POOL)
    api = guarded.api

    def found() -> dict[str, Any]:
        [only] = api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [str(run)]}}})
        return only

    guarded.wait(lambda: found()["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}, 1200, "the run's end")
    assert found()["state_type"] == "COMPLETED", found()["state"]
    assert any(entry.path.endswith("/manifest.json") for entry in open_store(store).list("artifacts"))
    shown = {
        "flow runs": found(),
        "deployments": api.post("/deployments/filter", {}),
        "pools": api.post("/work_pools/filter", {}),
        "logs": api.everything("/logs/filter", {"logs": {"flow_run_id": {"any_": [str(run)]}}}),
        "blocks": api.post("/block_documents/filter", {}),
        "files": [log.read_text(errors="replace") for log in guarded.folder.glob("*.log")],
    }
    for place, content in shown.items():
        assert SECRET_KEY not in json.dumps(content), place
