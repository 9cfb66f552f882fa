"""Flow runs whose process is gone without a word: told to the Prefect server and to the store.

Such a run would stay pending, running or paused for an approval for ever, and keep its place in its work queue. Runs
of this host are judged by their processes: those whose record in the store names a process of this host and boot, and,
in a stack of `medius up`, those that the stack's own workers took. One is dead if no process of this host has its id in
the environment and the one in its record, if that is of here, is gone; whatever the server thinks, a living one is
never touched. One that may be another host's is judged by its heartbeats, if it comes of a deployment and has sent any
(heartbeats.py).

python -m flows.dead_runs [--settled SECONDS] [--every-record]      server, store and stack by the environment
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.addresses import DEFAULT_STORE
from flows.approval_rule import is_asked_about
from flows.heartbeats import GONE_SILENT, LOST, OneLook
from flows.prefect_api import PrefectApi
from flows.stack_environment import OWN_SERVER_VARIABLE
from flows.stack_processes import living_runs
from flows.stack_services import POOLS, worker_name
from tasks.artifacts.errors import MediusError, StoreError
from tasks.artifacts.runs import RunRecord, all_runs, end_silent_run, read_run
from tasks.artifacts.store import Store, open_store
from tasks.runtime.stage_feed import ENDED, resource_of

SETTLED_SECONDS = 60.0
"""A run that came into its state this short ago is not judged yet: its process may be about to tell of another."""
_PENDING = 1.8
"""As much longer one stays unjudged that is pending: a loaded machine has been seen to need 17 s for its process."""
FLOWS = ("distillation", "single-stage", "ablation", "collect-garbage", "verify", "mark-dead-runs")
"""Whose runs are judged: those of other flows, on a server that is not ours alone, are others' business."""
_OPEN = ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]
_OPEN_TASKS = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
_CRASHED_HOURS = 24
_CLOCKS = timedelta(seconds=5)
"""By so much the clocks of server and host may differ where a record is compared with a state; records tell seconds."""
_BEATING = {"RUNNING", "CANCELLING", "PAUSED"}
_GONE = LOST + "its process is gone without a word"
_GOES_ON = "; a retry, or a new run, goes on from what is finished"
_ASKS_AGAIN = "; it waited for an approval, for which a retry, or a new run, asks again"


@dataclass
class DeadRuns:
    """One look at a server and a store."""

    api: PrefectApi
    store: Store
    workers: frozenset[str] = frozenset()
    """Names of this host's own workers, where the server is theirs alone; else a run without a record is not judged."""
    settled_seconds: float = SETTLED_SECONDS
    every_record: bool = False
    """Whether also runs that the server does not know are looked for in the store: reads every record there."""
    tell: Callable[[str], None] = print
    feed: OneLook | None = None
    """By which runs of other hosts are judged; None: not at all."""
    flows: tuple[str, ...] = FLOWS
    _living: set[str] = field(default_factory=set)

    def mark(self) -> None:
        """Marks what is dead, and says so of each.

        Raises:
            MediusError: the server does not answer.
        """
        # In this order: a run that ends between the two looks has told the server before its process was gone.
        opened = [run for run in self._flow_runs(_OPEN) if run["state_type"] != "PAUSED" or is_asked_about(run)]
        crashed = self._flow_runs(["CRASHED"], task_runs={"state": {"type": {"any_": _OPEN_TASKS}}})
        since = (datetime.now(UTC) - timedelta(hours=_CRASHED_HOURS)).isoformat()
        crashed += [run for run in self._flow_runs(["CRASHED"], end_time={"after_": since}) if run not in crashed]
        self._living = living_runs()
        for run in (*opened, *crashed):
            try:
                record = read_run(self.store, run["id"])
            except StoreError:
                # Nothing is known: then only the processes tell.
                record = None
            try:
                if self._is_dead(run, record):
                    self._end(run, record, _GONE)
                elif (seconds := self._silence(run, record)) is not None:
                    self._end(run, record, GONE_SILENT.format(seconds=seconds))
            except MediusError as error:
                self.tell(f"{run['name']} ({run['id']}) could not be marked: {error}")
        if self.every_record:
            for record in all_runs(self.store):
                if record.is_dead() and record.run not in self._living:
                    self._end_record(record.run, f"{_GONE}{_GOES_ON}")

    def _flow_runs(
        self, types: list[str], task_runs: dict[str, Any] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        body: dict[str, Any] = {
            "flows": {"name": {"any_": list(self.flows)}},
            "flow_runs": {"state": {"type": {"any_": types}}, **more},
        }
        return self.api.everything("/flow_runs/filter", body if task_runs is None else {**body, "task_runs": task_runs})

    def _is_dead(self, run: dict[str, Any], record: RunRecord | None) -> bool:
        since = datetime.fromisoformat(run["state"]["timestamp"])
        patience = self.settled_seconds * (_PENDING if run["state_type"] == "PENDING" else 1)
        if run["id"] in self._living or (datetime.now(UTC) - since).total_seconds() < patience:
            return False
        if record is not None and record.process is not None and record.process.is_here():
            if not record.process.is_gone():
                return False
            # A retry may run on another host, and has written no record of its own yet; it has before it is paused.
            if run["state_type"] in {"CRASHED", "PAUSED"} or (
                run["state_type"] == "RUNNING" and datetime.fromisoformat(record.started) > since - _CLOCKS
            ):
                return True
        # A run of no deployment has no process of its own, and one that no worker has labelled yet is of this stack.
        worker = (run.get("labels") or {}).get("prefect.worker.name")
        return bool(self.workers) and run["deployment_id"] is not None and worker in {None, *self.workers}

    def _silence(self, run: dict[str, Any], record: RunRecord | None) -> float | None:
        """After how many seconds without a heartbeat a run is given up; None if it is not.

        It may be one of another host, as may be the retry of one whose process here is gone.
        """
        process = None if record is None else record.process
        lives_here = process is not None and process.lives_here()
        if self.feed is None or run["state_type"] not in _BEATING or run["deployment_id"] is None:
            return None
        if lives_here or run["id"] in self._living:
            return None
        return self.feed.silent(run["id"], datetime.fromisoformat(run["state"]["timestamp"]))

    def _end(self, run: dict[str, Any], record: RunRecord | None, why: str) -> None:
        since = datetime.fromisoformat(run["state"]["timestamp"])
        finished = record is not None and record.state == "finished" and record.last_moment() > since - _CLOCKS
        state = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
        message = why + (_ASKS_AGAIN if run["state_type"] == "PAUSED" else _GOES_ON)
        if run["state_type"] != "CRASHED":
            if finished:
                state, message = "COMPLETED", "it had finished; its last word to the server was lost"
            body = {"type": state, "name": state.capitalize(), "message": message}
            # Without force: the server refuses where the run has ended by itself since.
            answer = self.api.post(f"/flow_runs/{run['id']}/set_state", {"state": body})
            if answer["status"] != "ACCEPT":
                return
            self.tell(f"{run['name']} ({run['id']}) is {state.lower()}: {message}")
        self._close_tasks(run["id"], state)
        self._end_record(run["id"], message)

    def _close_tasks(self, run: str, state: str) -> None:
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": _OPEN_TASKS}}}}
        body = {"type": state, "name": state.capitalize(), "message": "the process of its flow run is gone"}
        tasks = self.api.everything("/task_runs/filter", wanted)
        # First: a task that is closed is not found again where this fails.
        self._end_stages(run, [task["name"] for task in tasks if task["state_type"] == "RUNNING"])
        for task in tasks:
            self.api.post(f"/task_runs/{task['id']}/set_state", {"state": body, "force": True})
        if tasks:
            self.tell(f"{len(tasks)} task runs of {run} are {state.lower()}")

    def _end_stages(self, run: str, tasks: list[str]) -> None:
        """Tells the event feed what the run's own process could not, so that no alert waits for their progress."""
        run_itself = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}
        moment = datetime.now(UTC).isoformat()
        events = [
            {
                "id": str(uuid.uuid4()),
                "event": ENDED,
                "occurred": moment,
                "resource": resource_of(run, task),
                "related": [run_itself],
            }
            for task in tasks
        ]
        if events:
            self.api.post("/events", events)

    def _end_record(self, run: str, message: str) -> None:
        try:
            if end_silent_run(self.store, run, message):
                self.tell(f"the record of {run} in {self.store.uri} says now that it was interrupted")
        except StoreError as error:
            self.tell(f"the record of {run} stays as it is: {error}")


def own_workers() -> frozenset[str]:
    """Names of this host's workers, where the server is that of a stack of `medius up`: no others take runs of it.

    A worker that somebody starts beside another server (flows/pool_worker.py) does not make that server his own.
    """
    server = os.environ.get(OWN_SERVER_VARIABLE)
    own = server is not None and server == os.environ.get("PREFECT_API_URL")
    return frozenset(worker_name(pool) for pool in POOLS) if own else frozenset()


def main() -> None:
    """What the module does as a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--settled", type=float, default=SETTLED_SECONDS)
    parser.add_argument("--every-record", action="store_true")
    arguments = parser.parse_args()
    try:
        DeadRuns(
            PrefectApi.of(os.environ),
            open_store(DEFAULT_STORE),
            own_workers(),
            arguments.settled,
            arguments.every_record,
        ).mark()
    except MediusError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
