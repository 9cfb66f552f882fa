"""infra/compose.yaml is valid by the compose specification and starts what `medius up` starts. Nothing runs here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from flows.prefect_server import RUN_SETTINGS
from flows.profiles import CONFIGS
from flows.stack_processes import _AFTER_GRACE_SECONDS, _KILL_SECONDS
from flows.stack_services import POOLS

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture
def document() -> dict[str, Any]:
    """The file with its merge keys resolved, as docker compose reads it."""
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return loaded


def test_the_file_is_valid(document: dict[str, Any]) -> None:
    services = PyCompose.from_json(json.dumps(document)).service_names()
    assert {"postgres", "prefect", "s3", "deploy", *(f"worker-{pool}" for pool in POOLS)} == set(services)


@pytest.mark.parametrize(
    ("service", "key", "value", "said"),
    [
        ("postgres", "imagee", "postgres", "imagee"),
        ("s3", "ports", ["127.0.0.1:8333:x"], "error parsing port ranges"),
        ("prefect", "depends_on", {"postgres": {"condition": "service_happy"}}, "unknown variant `service_happy`"),
    ],
)
def test_an_invalid_file_would_be_seen(
    document: dict[str, Any], service: str, key: str, value: object, said: str
) -> None:
    document["services"][service][key] = value
    with pytest.raises(ValueError, match=said):
        PyCompose.from_json(json.dumps(document))


def test_only_loopback_is_published(document: dict[str, Any]) -> None:
    ports = [port for service in document["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_password_comes_from_the_environment_and_stands_in_the_example(document: dict[str, Any]) -> None:
    used = set(re.findall(r"\$\{(\w+)", json.dumps(document)))
    given = dict(line.split("=", 1) for line in (INFRA / "compose.env.example").read_text().splitlines() if "=" in line)
    assert used == set(given)
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH", name):
                assert "${" in value, name


def test_flow_runs_outlive_their_server_as_long_as_elsewhere(document: dict[str, Any]) -> None:
    for pool in POOLS:
        assert RUN_SETTINGS.items() <= document["services"][f"worker-{pool}"]["environment"].items()


def test_a_stopped_worker_has_as_long_as_any_stage_may_take_to_save(document: dict[str, Any]) -> None:
    graces = [re.findall(r"stop_grace_seconds: (\d+)", path.read_text()) for path in CONFIGS.glob("*.yaml")]
    longest = max(int(grace) for found in graces for grace in found)
    for pool in POOLS:
        worker = document["services"][f"worker-{pool}"]
        assert worker["command"][:3] == ["python", "-m", "flows.pool_worker"]
        minutes = re.fullmatch(r"(\d+)m", worker["stop_grace_period"])
        assert minutes is not None
        assert int(minutes[1]) * 60 > longest + _AFTER_GRACE_SECONDS + _KILL_SECONDS


def test_what_services_wait_for_exists(document: dict[str, Any]) -> None:
    services = document["services"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
    mounted = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert mounted == set(document["volumes"])
