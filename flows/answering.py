"""`medius approve`: the answer to a run that waits for somebody's word."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flows.approval_rule import is_asked_about
from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.runs import read_run
from tasks.artifacts.store import Store

CANCELLING = {"type": "CANCELLING", "name": "Cancelling", "message": "not approved"}


def answer(api: PrefectApi, store: Store, run: str | None, *, reject: bool, console: Console) -> None:
    """Resumes or cancels a waiting run; without one, says which wait.

    Args:
        store: where its record may be, by which a run is known whose process is gone.
        run: its id or its name.

    Raises:
        BadInputError: no such run waits, or several of that name do, or nobody is there to take the answer.
        MediusError: the server does not answer, or refuses.
    """
    paused = api.everything("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}})
    waiting = [found for found in paused if is_asked_about(found)]
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
    if not reject and _is_gone(store, identity):
        raise BadInputError(
            f"the process of {chosen['name']} ({identity}) is gone, so nothing takes the answer; within minutes the "
            f'deployment mark-dead-runs, or at once "python -m flows.dead_runs", marks the run as crashed: then retry '
            f"it, and it asks again"
        )
    if reject:
        said = api.post(f"/flow_runs/{identity}/set_state", {"state": CANCELLING})
    else:
        said = api.post(f"/flow_runs/{identity}/resume", {})
    if said["status"] != "ACCEPT":
        reason = (said.get("details") or {}).get("reason") or "it gave no reason"
        raise BadInputError(f"the server does not take the answer to {chosen['name']}: {reason}; start a new run")
    console.print(f"{chosen['name']} ({identity}) {'is cancelled' if reject else 'goes on'}", soft_wrap=True)


def _is_gone(store: Store, run: str) -> bool:
    """Whether the process that waits is known to have ended; one of another host never is."""
    try:
        record = read_run(store, run)
    except MediusError:
        # Its store may be one that only the workers reach.
        return False
    return record is not None and record.is_dead()


def _line(run: dict[str, Any]) -> str:
    return f"{run['id']} {run['name']}: {run['state'].get('message') or 'it is paused'}"
