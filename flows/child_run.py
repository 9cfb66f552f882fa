"""A flow run that another one has started and waits for."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed, State

from flows.heartbeats import GONE_SILENT

_RAISED = "Flow run encountered an exception: "
"""What Prefect puts before the name and the text of an exception that ended a flow."""


class ChildRun:
    """A flow run that makes a step, as the server last told it."""

    def __init__(self, run: FlowRun) -> None:
        self.run: UUID = run.id
        self.name = run.name
        self.state: State[Any] | None = run.state
        self.gone = False

    @property
    def ended(self) -> bool:
        return self.gone or (self.state is not None and self.state.is_final())

    @property
    def waits(self) -> bool:
        """Whether no worker has begun with it."""
        return self.state is None or self.state.is_scheduled() or self.state.is_pending()

    @property
    def runs(self) -> bool:
        """Whether its process is at work, by what the server knows."""
        return not self.gone and self.state is not None and self.state.is_running()

    @property
    def since(self) -> datetime:
        """When it came into its state, by the server."""
        assert self.state is not None, "it runs"
        return self.state.timestamp

    def look(self, client: SyncPrefectClient) -> bool:
        """Asks the server; returns whether something changed. A server that is away is asked again later."""
        before = self.told
        try:
            self.state = client.read_flow_run(self.run).state
        except ObjectNotFound:
            self.gone = True
        except httpx.HTTPError:
            return False
        return self.told != before

    @property
    def told(self) -> str:
        """Its state as the dashboard names it."""
        if self.gone:
            return "deleted"
        return "unknown" if self.state is None else str(self.state.name or self.state.type.value)

    @property
    def message(self) -> str:
        """What its end said."""
        text = (self.state.message if self.state is not None else None) or "it said nothing"
        return text.partition(_RAISED)[2] or text

    def give_up(self, client: SyncPrefectClient, seconds: float) -> None:
        """Tells the server that it is lost, so that it keeps no place of its pool, unless it has ended by itself."""
        lost: State[Any] = Crashed(message=GONE_SILENT.format(seconds=seconds))
        with suppress(httpx.HTTPError, ObjectNotFound):
            client.set_flow_run_state(self.run, lost)
            self.look(client)

    def cancel(self, client: SyncPrefectClient) -> None:
        """Asks its worker to stop it after a checkpoint; one that no worker has is cancelled at once."""
        with suppress(httpx.HTTPError, ObjectNotFound):
            client.set_flow_run_state(self.run, Cancelling())
