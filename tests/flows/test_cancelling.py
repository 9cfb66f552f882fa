"""A run that looks at its own state: what stops it, and what it tells of its end. With real parts: tests/infra."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.states import Cancelled, Cancelling, Running, State

from flows import cancelling
from flows.cancelling import CancelledOnServerError, CancelWatch, heeding_cancellation
from tasks.artifacts.errors import BadInputError, InterruptedRunError, MediusError

RUN = uuid4()


class Server:
    """Has one run. What each look of the watch finds; the last one stays. None: the server does not answer."""

    def __init__(self, *looks: State[Any] | None) -> None:
        self.looks = list(looks)
        self.told: list[State[Any]] = []
        self.looked = 0
        self.away = False

    @property
    def state(self) -> State[Any] | None:
        return self.told[-1] if self.told else self.looks[0]

    def post(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert (path, body) == ("/flow_runs/filter", {"flow_runs": {"id": {"any_": [str(RUN)]}}})
        self.looked += 1
        state = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if state is None:
            raise MediusError("the Prefect server does not answer")
        return [{"state_type": state.type.value}]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def read_flow_run(self, run: UUID) -> SimpleNamespace:
        assert run == RUN
        if self.away:
            raise httpx.ConnectError("refused")
        return SimpleNamespace(state=self.state)

    def set_flow_run_state(self, _run: UUID, state: State[Any]) -> SimpleNamespace:
        self.told.append(state)
        return SimpleNamespace(state=state)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], Server]:
    """started(server): as if a worker of that server had started this run."""

    def on(server: Server) -> Server:
        there = SimpleNamespace(deployment=SimpleNamespace(id="a"), flow_run=SimpleNamespace(id=str(RUN)))
        monkeypatch.setattr(cancelling, "runtime", there)
        monkeypatch.setattr(cancelling, "find_server", lambda: server)
        monkeypatch.setattr(cancelling, "get_client", lambda **_arguments: server)
        return server

    return on


def stopped(stop: Event, said: str = "stopped", then: Callable[[], None] = lambda: None) -> None:
    """What a run does that looks often: works until it is to stop, and says so."""
    with heeding_cancellation(stop, 0.01):
        assert stop.wait(10)
        then()
        raise InterruptedRunError(said)


@pytest.mark.parametrize("state", [Cancelling(), Cancelled()], ids=str)
def test_a_run_is_stopped_when_the_server_calls_it_cancelled(state: State[Any]) -> None:
    stop = Event()
    server = Server(Running(), None, Running(), state)
    watch = CancelWatch(server, str(RUN), stop, poll_seconds=0.01)  # type: ignore[arg-type]
    watch.start()
    assert stop.wait(10)
    assert watch.asked
    assert server.looked == 4, "a server that was away was asked again"


def test_a_run_that_has_ended_is_not_looked_at() -> None:
    stop = Event()
    watch = CancelWatch(Server(Cancelling()), str(RUN), stop, poll_seconds=0.05)  # type: ignore[arg-type]
    watch.start()
    watch.end()
    assert not stop.wait(0.2)
    assert not watch.asked


def test_a_cancelled_run_ends_as_cancelled_and_not_as_failed(started: Any) -> None:
    server = started(Server(Running(), Cancelling()))
    with pytest.raises(CancelledOnServerError) as ended:
        stopped(Event(), "distill was stopped\nand more")
    assert isinstance(ended.value.__cause__, InterruptedRunError)
    assert not isinstance(ended.value, Exception), "Prefect would make a failure of it"
    assert [state.message for state in server.told] == ["The run was cancelled: distill was stopped"]
    assert ended.value.state.is_cancelled()


def test_what_the_run_saw_first_counts_too(started: Any) -> None:
    """A stage that waits for an approval asks the server by itself."""
    server = started(Server(Cancelling()))
    with pytest.raises(CancelledOnServerError), heeding_cancellation(Event(), 100):
        raise InterruptedRunError("was not begun")
    assert server.looked == 0
    assert server.told[0].is_cancelled()


@pytest.mark.parametrize("now", [Cancelled(), Running()], ids=["given up by the server", "retried meanwhile"])
def test_a_state_that_is_not_its_own_stays(started: Any, now: State[Any]) -> None:
    server = started(Server(Cancelling(), now))
    with pytest.raises(CancelledOnServerError):
        stopped(Event())
    assert server.told == []


@pytest.mark.parametrize("error", [InterruptedRunError("stopped"), BadInputError("no teacher")], ids=str)
def test_a_run_that_nobody_cancelled_ends_as_before(started: Any, error: MediusError) -> None:
    server = started(Server(Running()))
    with pytest.raises(type(error)) as ended, heeding_cancellation(Event(), 0.01):
        raise error
    assert ended.value is error
    assert server.told == []


def test_a_server_that_is_away_at_the_end_hides_no_reason(started: Any) -> None:
    server = started(Server(Cancelling()))
    with pytest.raises(InterruptedRunError):
        stopped(Event(), then=lambda: setattr(server, "away", True))


def test_a_run_of_the_command_line_looks_at_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Cancelling())
    monkeypatch.setattr(cancelling, "find_server", lambda: server)
    stop = Event()
    with heeding_cancellation(stop, 0.01):
        assert not stop.wait(0.2)
    assert server.looked == 0
