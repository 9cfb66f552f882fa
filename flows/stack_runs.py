"""Flow runs of deployments that nobody works on any more, told to the Prefect server.

A run whose worker is gone would stay pending or running for ever, and keep the place that its deployment's limit gives.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Mapping
from typing import Any

_SECONDS = 60
_OPEN = ["PENDING", "RUNNING", "CANCELLING"]


def close_runs(environment: Mapping[str, str]) -> int:
    """Marks every open run of a deployment as crashed; to be called while no worker lives.

    Args:
        environment: names the server in PREFECT_API_URL and, where it has one, the password.

    Returns:
        How many there were.

    Raises:
        OSError: the server does not answer.
    """
    wanted = {"flow_runs": {"state": {"type": {"any_": _OPEN}}, "deployment_id": {"is_null_": False}}}
    runs = _post(environment, "/flow_runs/filter", wanted)
    message = "its worker was stopped; a retry, or a new run, goes on from what is finished"
    state = {"type": "CRASHED", "name": "Crashed", "message": message}
    for run in runs:
        _post(environment, f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return len(runs)


def _post(environment: Mapping[str, str], path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if (authority := environment.get("PREFECT_API_AUTH_STRING")) is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(authority.encode()).decode()}"
    request = urllib.request.Request(f"{environment['PREFECT_API_URL']}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        return json.load(answer)
