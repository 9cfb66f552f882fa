"""`medius approve`: the answer to a run that waits for somebody's word."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flows.approval_rule import PAUSE_KEY
from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import BadInputError

CANCELLING = {"type": "CANCELLING", "name": "Cancelling", "message": "not approved"}


def answer(api: PrefectApi, run: str | None, *, reject: bool, console: Console) -> None:
    """Resumes or cancels a waiting run; without one, says which wait.

    Args:
        run: its id or its name.

    Raises:
        BadInputError: no such run waits, or several of that name do.
        MediusError: the server does not answer, or refuses.
    """
    paused = api.everything("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}})
    waiting = [found for found in paused if _asks(found)]
    if run is None:
        for found in waiting:
            console.print(_line(found), soft_wrap=True, markup=False)
        if not waiting:
            console.print("no run waits for an approval")
        return
    wanted = [found for found in waiting if run in {found["name"], found["id"]}]
    if len(wanted) != 1:
        ids = ", ".join(found["id"] for found in wanted or waiting) or "none does"
        many = f"{len(wanted)} runs {run!r} wait" if wanted else f"no run {run!r} waits"
        raise BadInputError(f"{many} for an approval; name one of: {ids}")
    [chosen] = wanted
    identity = chosen["id"]
    if reject:
        said = api.post(f"/flow_runs/{identity}/set_state", {"state": CANCELLING})
    else:
        said = api.post(f"/flow_runs/{identity}/resume", {})
    if said["status"] != "ACCEPT":
        reason = (said.get("details") or {}).get("reason") or "it gave no reason"
        raise BadInputError(f"the server does not take the answer to {chosen['name']}: {reason}; start a new run")
    console.print(f"{chosen['name']} ({identity}) {'is cancelled' if reject else 'goes on'}", soft_wrap=True)


def _asks(run: dict[str, Any]) -> bool:
    """Whether a paused run waits for an approval, and not for something of somebody else's."""
    key = (run["state"].get("state_details") or {}).get("pause_key")
    return key is not None and key.startswith(PAUSE_KEY)


def _line(run: dict[str, Any]) -> str:
    return f"{run['id']} {run['name']}: {run['state'].get('message') or 'it is paused'}"
