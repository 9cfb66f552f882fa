"""What the dashboard shows of a flow that ends with an error which nobody expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from flows.ablate import ablation
from flows.maintenance import collect_garbage, mark_dead_runs, verify_profile
from flows.pipeline import distillation
from flows.single_stage import single_stage

SECRET = "bright-blue-whale"


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.mark.parametrize(
    ("flow", "parameters", "inside"),
    [
        (collect_garbage, {}, "flows.maintenance.collect"),
        (verify_profile, {}, "flows.maintenance.load_profile"),
        (mark_dead_runs, {}, "flows.maintenance.open_store"),
        (distillation, {}, "flows.pipeline.load_profile"),
        (single_stage, {"stage": "publish"}, "flows.single_stage.load_profile"),
        (ablation, {"kind": "fusion"}, "flows.ablate.load_profile"),
    ],
)
def test_its_state_shows_no_credential(
    flow: Callable[..., Any], parameters: dict[str, str], inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)

    def fail(*_arguments: object, **_named: object) -> None:
        raise RuntimeError(f"no answer to {SECRET}")

    monkeypatch.setattr(inside, fail)
    ended = flow(**parameters, return_state=True)
    with get_client(sync_client=True) as client:
        shown = client.read_flow_run(ended.state_details.flow_run_id).state
    assert shown is not None
    assert shown.is_failed()
    assert shown.message is not None
    assert shown.message.endswith("RuntimeError: no answer to [redacted]")
    assert SECRET not in shown.model_dump_json()
