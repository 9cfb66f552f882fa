"""infra/kubernetes is what Kubernetes accepts by its own schemas, the work pool's template as Prefect renders it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.kubernetes_deploy import KubernetesPool, base_job_template, read_pools
from flows.prefect_server import RUN_SETTINGS
from flows.stack import CHECKOUT
from flows.stack_services import POOLS as STACK_POOLS
from tasks.artifacts.errors import BadInputError

FOLDER = CHECKOUT / "infra" / "kubernetes"
TEMPLATE: dict[str, Any] = json.loads((FOLDER / "job-template.json").read_text())


def documents(name: str) -> dict[str, dict[str, Any]]:
    """What a file has kubectl make, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((FOLDER / name).read_text())}


NODES, WORKER, DEPLOY = documents("nodes.yaml"), documents("worker.yaml"), documents("deploy.yaml")
POOLS = read_pools(FOLDER / "pools.yaml")
OURS = [*NODES.values(), *WORKER.values(), *DEPLOY.values()]
OWN_SETTINGS = re.compile(r"PREFECT_(?!_|API_URL$|FLOW_RUN_EXECUTE_)")
VERSIONS = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
"""The three minor versions that the Kubernetes project supports at a time, as of the pinned schemas."""


def rendered(template: dict[str, Any] = TEMPLATE, **values: Any) -> dict[str, Any]:
    """The job that Prefect's Kubernetes worker submits for a flow run of a deployment with these job variables."""
    jsonschema.validate(values, template["variables"])
    client = PrefectClient("http://prefect:4200/api")  # never asked: the template refers to no block
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        configuration = asyncio.run(
            KubernetesWorkerJobConfiguration.from_template_and_values(template, values, client=client)
        )
        configuration.prepare_for_flow_run(FlowRun(id=UUID(int=1), flow_id=UUID(int=2), name="stage-of-medius"))
    job: dict[str, Any] = configuration.job_manifest
    [container] = job["spec"]["template"]["spec"]["containers"]
    # Settings of this machine's shell travel with the job; they are none of the template's.
    container["env"] = [
        entry for entry in container["env"] if entry["name"] in RUN_SETTINGS or not OWN_SETTINGS.match(entry["name"])
    ]
    return job


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of every kind of pod."""
    yield "flow run", rendered()["spec"]["template"]["spec"]
    yield "node", NODES["StatefulSet"]["spec"]["template"]["spec"]


def all_pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Those, those of each pool, and those that never see a GPU."""
    yield from pods()
    for name, pool in POOLS.items():
        yield f"pool {name}", rendered(base_job_template(name, pool))["spec"]["template"]["spec"]
    yield "worker", WORKER["Deployment"]["spec"]["template"]["spec"]
    yield "deploy", DEPLOY["Job"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rendered_job_is_valid(version: str) -> None:
    kubernetes_validate.validate(rendered(), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", OURS, ids=lambda document: document["kind"])
def test_what_kubectl_makes_is_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)
    assert document["metadata"]["namespace"] == "medius"


@pytest.mark.parametrize("pool", POOLS)
def test_a_pools_job_is_valid(pool: str) -> None:
    kubernetes_validate.validate(rendered(base_job_template(pool, POOLS[pool])), VERSIONS[-1], strict=True)


def test_an_invalid_job_would_be_seen() -> None:
    job = rendered()
    job["spec"]["template"]["spec"]["containers"][0]["ressources"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="ressources"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_the_example_is_what_the_template_renders() -> None:
    assert yaml.safe_load((FOLDER / "gpu-job.example.yaml").read_text()) == rendered()


def test_what_a_deployment_sets_arrives_in_the_job() -> None:
    limits = {"memory": "900Gi", "nvidia.com/gpu": 4, "rdma/ib": 4}
    taint = {"key": "ours", "operator": "Equal", "value": "h100", "effect": "NoExecute"}
    job = rendered(
        limits=limits, shared_memory="8Gi", stop_seconds=60, secret="ours", node_selector={"gpu": "h100"},
        tolerations=[taint], models_volume={"name": "models", "hostPath": {"path": "/nvme/models"}},
    )  # fmt: skip
    kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == limits
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [taint]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["models"]["hostPath"]["path"] == "/nvme/models"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert container["envFrom"] == [{"secretRef": {"name": "ours"}}]
    with pytest.raises(jsonschema.ValidationError):
        rendered(limits="eight")


def test_only_the_pool_of_gpus_takes_any() -> None:
    assert POOLS.keys() == STACK_POOLS.keys()
    taking = {}
    for name, pool in POOLS.items():
        spec = rendered(base_job_template(name, pool))["spec"]["template"]["spec"]
        taking[name] = spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert bool(taking[name]) == bool(spec["tolerations"])
    assert taking == {"medius": 0, "cpu": 0, "gpu": 8}


def test_flow_runs_outlive_their_server_as_long_as_elsewhere() -> None:
    [container] = rendered()["spec"]["template"]["spec"]["containers"]
    assert RUN_SETTINGS.items() <= {entry["name"]: entry.get("value") for entry in container["env"]}.items()


def test_a_pools_environment_is_added_to_the_templates() -> None:
    pool = KubernetesPool(variables={"env": {"NCCL_IB_HCA": "mlx5"}})
    [container] = rendered(base_job_template("cpu", pool))["spec"]["template"]["spec"]["containers"]
    names = {entry["name"] for entry in container["env"]}
    assert {"NCCL_IB_HCA", "HF_HOME", "MEDIUS_INPUT_CACHE"} <= names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: {variables: {gpus: 8}}", "the pool gpu sets gpus, which job-template.json does not have"),
        ("gpu: {variables: {limits: 8}}", "the pool gpu sets limits to what it cannot be: 8 is not of type 'object'"),
        ("gpu: {variable: {}}", "is no list of pools"),
        ("[gpu]", "is no list of pools"),
    ],
)
def test_pools_that_cannot_be_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(text)
    with pytest.raises(BadInputError, match=said):
        [base_job_template(name, pool) for name, pool in read_pools(file).items()]
    with pytest.raises(BadInputError, match="there is no"):
        read_pools(tmp_path / "none.yaml")


@pytest.mark.parametrize(("name", "pod"), list(all_pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_has_no_privileges(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # The workers alone speak with Kubernetes.
    assert pod.get("automountServiceAccountToken", True) == (name == "worker")


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_of_gpus_has_shared_memory_and_models_on_its_node(name: str, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "hostPath" in volumes[mounts["/models"]]
    assert "persistentVolumeClaim" in volumes[mounts["/home/medius/run"]]


def test_ranks_find_the_first_node_by_the_name_of_the_headless_service() -> None:
    service, nodes = NODES["Service"]["spec"], NODES["StatefulSet"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    assert nodes["serviceName"] == NODES["Service"]["metadata"]["name"]
    assert service["selector"].items() <= nodes["template"]["metadata"]["labels"].items()
    [port] = re.findall(r"^Port (\d+)$", (CHECKOUT / "infra" / "ssh" / "sshd_config").read_text(), flags=re.MULTILINE)
    assert {entry["containerPort"] for entry in nodes["template"]["spec"]["containers"][0]["ports"]} == {int(port)}


def test_hosts_of_a_launch_are_the_pods_that_there_are() -> None:
    nodes = NODES["StatefulSet"]["spec"]
    gpus = nodes["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    name, service = NODES["StatefulSet"]["metadata"]["name"], nodes["serviceName"]
    # As many as `kubectl scale` in the file's head names: none stands before that, and takes GPUs from the pool gpu.
    assert nodes["replicas"] == 0
    [count] = re.findall(r"kubectl scale .* --replicas (\d+)", (FOLDER / "nodes.yaml").read_text())
    hosts = [f"{name}-{number}.{service} slots={gpus}" for number in range(int(count))]
    assert NODES["ConfigMap"]["data"]["hostfile"].splitlines() == hosts
    spec = rendered()["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["hosts"]["configMap"]["name"] == NODES["ConfigMap"]["metadata"]["name"]


def test_every_pool_has_a_worker_with_the_role_that_starts_and_watches_jobs() -> None:
    worker = WORKER["Deployment"]["spec"]["template"]["spec"]
    pools = {container["command"][container["command"].index("--pool") + 1] for container in worker["containers"]}
    assert pools == POOLS.keys()
    account = WORKER["ServiceAccount"]["metadata"]["name"]
    assert worker["serviceAccountName"] == account
    assert [subject["name"] for subject in WORKER["RoleBinding"]["subjects"]] == [account]
    assert WORKER["RoleBinding"]["roleRef"]["name"] == WORKER["Role"]["metadata"]["name"]
    allowed = {(resource, verb) for rule in WORKER["Role"]["rules"] for resource in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    # The calls of prefect_kubernetes' worker and observer, and no secrets.
    wanted = {("jobs", verb) for verb in ("create", "delete", "get", "list", "watch")}
    wanted |= {(f"pods{part}", verb) for part in ("", "/log", "/status") for verb in ("get", "list", "watch")}
    assert allowed == wanted | {("events", verb) for verb in ("get", "list", "watch")}


def test_the_nodes_take_the_rdma_patch() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl, which patches")
    command = ["kubectl", "patch", "--local", "--filename=-", f"--patch-file={FOLDER / 'nodes-rdma.yaml'}",
               "--output=json"]  # fmt: skip
    done = subprocess.run(command, input=json.dumps(NODES["StatefulSet"]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    patched = json.loads(done.stdout)
    kubernetes_validate.validate(patched, VERSIONS[-1], strict=True)
    [container] = patched["spec"]["template"]["spec"]["containers"]
    # An extended resource's request and limit must be one number, and what was there must stay.
    assert container["resources"]["limits"] == {"memory": "1024Gi", "nvidia.com/gpu": 8, "rdma/ib": 8}
    assert container["resources"]["requests"]["rdma/ib"] == 8


def test_no_secret_stands_in_a_file() -> None:
    secret = r"\b\w*(?:SECRET|TOKEN|PASSWORD|AUTH_STRING)\w*\b\s*[:=]\s*\S+"
    texts = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert texts
    assert {name: found for name, text in texts.items() if (found := re.findall(secret, text))} == {}
