"""infra/kubernetes is what Kubernetes accepts by its own schemas, the work pool's template as Prefect renders it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
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

from flows.stack import CHECKOUT

FOLDER = CHECKOUT / "infra" / "kubernetes"
TEMPLATE: dict[str, Any] = json.loads((FOLDER / "gpu-job-template.json").read_text())
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "nodes.yaml").read_text()))
NODES = {document["kind"]: document for document in DOCUMENTS}
OWN_SETTINGS = re.compile(r"PREFECT_(?!_|API_URL$|FLOW_RUN_EXECUTE_)")
VERSIONS = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
"""The three minor versions that the Kubernetes project supports at a time, as of the pinned schemas."""


def rendered(**values: Any) -> dict[str, Any]:
    """The job that Prefect's Kubernetes worker submits for a flow run of a deployment with these job variables."""
    jsonschema.validate(values, TEMPLATE["variables"])
    client = PrefectClient("http://prefect:4200/api")  # never asked: the template refers to no block
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        configuration = asyncio.run(
            KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=client)
        )
        configuration.prepare_for_flow_run(FlowRun(id=UUID(int=1), flow_id=UUID(int=2), name="stage-of-medius"))
    job: dict[str, Any] = configuration.job_manifest
    [container] = job["spec"]["template"]["spec"]["containers"]
    # Settings of this machine's shell travel with the job; they are none of the template's.
    container["env"] = [entry for entry in container["env"] if not OWN_SETTINGS.match(entry["name"])]
    return job


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of every kind of pod."""
    yield "flow run", rendered()["spec"]["template"]["spec"]
    yield "node", NODES["StatefulSet"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rendered_job_is_valid(version: str) -> None:
    kubernetes_validate.validate(rendered(), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Service", "StatefulSet", "PersistentVolumeClaim"])
def test_the_nodes_are_valid(kind: str, version: str) -> None:
    kubernetes_validate.validate(NODES[kind], version, strict=True)


def test_an_invalid_job_would_be_seen() -> None:
    job = rendered()
    job["spec"]["template"]["spec"]["containers"][0]["ressources"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="ressources"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_the_example_is_what_the_template_renders() -> None:
    assert yaml.safe_load((FOLDER / "gpu-job.example.yaml").read_text()) == rendered()


def test_what_a_deployment_sets_arrives_in_the_job() -> None:
    job = rendered(gpus=4, shared_memory="8Gi", models_path="/nvme/models", stop_seconds=60, secret="ours")
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["models"]["hostPath"]["path"] == "/nvme/models"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert container["envFrom"] == [{"secretRef": {"name": "ours"}}]
    with pytest.raises(jsonschema.ValidationError):
        rendered(gpus="eight")


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_has_no_privileges_shared_memory_and_models_on_its_node(name: str, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not pod["automountServiceAccountToken"]
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


def test_no_secret_stands_in_a_file() -> None:
    secret = r"\b\w*(?:SECRET|TOKEN|PASSWORD|AUTH_STRING)\w*\b\s*[:=]\s*\S+"
    texts = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert texts
    assert {name: found for name, text in texts.items() if (found := re.findall(secret, text))} == {}
