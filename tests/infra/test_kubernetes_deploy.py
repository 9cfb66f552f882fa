"""Pools and deployments for Kubernetes on a real Prefect server, as infra/kubernetes/deploy.yaml makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.kubernetes_deploy import NOT_HERE
from tests.infra.guarded_server import ROOT, GuardedServer, guarded_server

FILE = ROOT / "infra" / "prefect.yaml"
DEPLOY = ("flows.kubernetes_deploy", str(FILE))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A server of its own: elsewhere a pool of the name `cpu` is one of processes."""
    with guarded_server(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_deployments_are_run_in_the_folder_where_they_were_made_by_jobs(guarded: GuardedServer, tmp_path: Path) -> None:
    pools = tmp_path / "pools.yaml"
    given = yaml.safe_load((ROOT / "infra" / "kubernetes" / "pools.yaml").read_text())
    pools.write_text(yaml.safe_dump(given))
    done = guarded.module(*DEPLOY, str(pools))
    assert done.returncode == 0, done.stdout + done.stderr
    # Once more with other defaults: the pool takes them.
    given["gpu"]["variables"]["node_selector"] = {"gpu": "h100"}
    pools.write_text(yaml.safe_dump(given))
    done = guarded.module(*DEPLOY, str(pools))
    assert done.returncode == 0, done.stdout + done.stderr
    made = {pool["name"]: pool for pool in guarded.api.everything("/work_pools/filter", {})}
    assert {name: pool["type"] for name, pool in made.items()} == dict.fromkeys(given, "kubernetes")
    properties = made["gpu"]["base_job_template"]["variables"]["properties"]
    assert properties["node_selector"]["default"] == {"gpu": "h100"}
    deployments = guarded.api.everything("/deployments/filter", {})
    names = {entry["name"] for entry in yaml.safe_load(FILE.read_text())["deployments"]}
    assert {deployment["name"] for deployment in deployments} == names - NOT_HERE
    # In a pod this is /home/medius/run.
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(guarded.folder.resolve())}}
    for deployment in deployments:
        assert deployment["pull_steps"] == [step], deployment["name"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pool_of_processes_of_the_same_name_is_one_sentence(guarded: GuardedServer, tmp_path: Path) -> None:
    guarded.api.post("/work_pools/", {"name": "processes", "type": "process", "base_job_template": {}})
    pools = tmp_path / "pools.yaml"
    pools.write_text("processes: {}\n")
    said = guarded.module(*DEPLOY, str(pools))
    assert said.returncode == 1
    [line] = said.stderr.strip().splitlines()
    assert "the work pool processes exists with type process" in line
    assert "prefect work-pool delete processes" in line
