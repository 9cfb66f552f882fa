"""`medius up` and `medius down`: the production stack on one machine, without containers.

.medius/up/state.json    the processes, with their start times
           environment, s3-secret, prefect-password      see stack_environment.py
           logs/  s3/  prefect/    logs and data; both stay when the stack goes down
"""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from flows import stack_processes as processes
from flows import stack_services as services
from flows.stack_environment import client_environment, keep_password, service_environment
from flows.stack_module import last_lines, run_module
from flows.stack_processes import StackProcess
from flows.stack_services import ALERT_BLOCK_VARIABLE, POOLS, Ports
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.frozen import Frozen

FOLDER = Path(".medius/up")
CHECKOUT = Path(__file__).parents[1]
START_SECONDS = 300
"""A Prefect server has been seen to need 200 on a machine with ten times more work than processors."""
STOP_SECONDS = 90
"""At least; longer where a stage at work may take more than 60 to save its checkpoint (stop_grace_seconds)."""
SERVER_STOP_SECONDS = 30
DEPLOY_SECONDS = 600
MARK_SECONDS = 180
SERVERS = ("prefect", "s3")
_AGAIN = "mend the cause and start it again"


class StackState(Frozen):
    """What was started here."""

    token: str
    ports: Ports
    processes: tuple[StackProcess, ...] = ()

    def living(self) -> dict[str, StackProcess]:
        """Those that run, by name."""
        return {process.name: process for process in self.processes if process.alive()}


@dataclass
class Stack:
    """The stack whose state is in `folder`; its runs have the present working folder."""

    console: Console
    folder: Path = FOLDER

    def up(self, prefect_port: int | None = None, s3_port: int | None = None) -> None:
        """Starts what does not run, and deploys. Ports that are not given stay as they were the last time.

        Raises:
            BadInputError: a port is in use, or the stack runs at other ports.
            MediusError: a part did not come up; what this call started is stopped again.
        """
        with self._locked():
            state = self._state() or StackState(token=uuid.uuid4().hex, ports=Ports())
            ports = services.chosen_ports(prefect_port or state.ports.prefect, s3_port or state.ports.s3)
            living = state.living()
            if living and ports != state.ports:
                raise BadInputError(
                    f"the stack runs with Prefect at port {state.ports.prefect} and S3 at {state.ports.s3}; "
                    f'"medius down" first, then start it at others'
                )
            keep_password(self.folder, running="prefect" in living)
            self._write(state := state.model_copy(update={"ports": ports, "processes": tuple(living.values())}))
            try:
                self._start(state)
            except BaseException:
                now = self._state() or state
                self._stop(now, [process for name, process in now.living().items() if name not in living])
                raise
            self._tell(ports, already=set(living))

    def _start(self, state: StackState) -> None:
        environment = self._service_environment(state)
        living = state.living()
        ports = state.ports
        if "s3" not in living:
            services.require_free("--s3-port", ports.s3, services.s3_needs(ports))
        if "prefect" not in living:
            services.require_free("--prefect-port", ports.prefect, [ports.prefect])
        data = (self.folder / "s3").resolve()
        data.mkdir(parents=True, exist_ok=True)
        # Without a signature the S3 server that is ready refuses.
        s3 = self._service(state, "s3", services.s3_command(data, ports), environment)
        prefect = self._service(state, "prefect", services.prefect_command(ports), environment)
        self._wait(s3, "s3", lambda: services.answers(ports.s3, "/", 403))
        self._wait(prefect, "prefect", lambda: services.answers(ports.prefect, "/api/health", 200))
        self._deploy(environment)
        # Where a worker lives, a run that it has just taken may have no process yet.
        idle = not any(name.startswith("worker-") for name in living)
        self._mark_dead(environment, *(["--settled", "0"] if idle else []), "--every-record")
        for pool in POOLS:
            self._service(state, f"worker-{pool}", services.worker_command(pool), environment)

    def _service(
        self, state: StackState, name: str, command: list[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Starts a process unless it runs, and writes it down at once."""
        now = self._state() or state
        if name in now.living():
            return None
        log = (self.folder / "logs" / f"{name}.log").resolve()
        started, process = processes.start(name, command, environment, Path.cwd(), log)
        others = tuple(other for other in now.processes if other.name != name)
        self._write(now.model_copy(update={"processes": (*others, started)}))
        return process

    def _wait(self, process: subprocess.Popen[bytes] | None, name: str, up: Callable[[], bool]) -> None:
        ended: list[int] = []

        def settled() -> bool:
            if process is not None and (code := process.poll()) is not None:
                ended.append(code)
            return bool(ended) or up()

        came = processes.wait_until(settled, START_SECONDS)
        if ended or not came:
            how = f"ended with exit code {ended[0]}" if ended else f"did not answer in {START_SECONDS} s"
            log = (self.folder / "logs" / f"{name}.log").resolve()
            raise MediusError(f"{name} {how}: {last_lines(log.read_text(errors='replace'))} (log: {log}); {_AGAIN}")

    def _deploy(self, environment: Mapping[str, str]) -> None:
        """Makes the pools and the deployments of infra/prefect.yaml, or brings them to what the file says."""
        log = (self.folder / "logs" / "deploy.log").resolve()
        file = str(CHECKOUT / "infra" / "prefect.yaml")
        ran = run_module("flows.stack_deploy", file, environment=environment, seconds=DEPLOY_SECONDS)
        log.write_text(ran.out + ran.err)
        if ran.fault is not None:
            raise MediusError(f"infra/prefect.yaml could not be deployed: {ran.fault} (log: {log}); {_AGAIN}")
        for line in ran.err.splitlines():
            # What was left out for the lack of a block.
            if line.startswith(ALERT_BLOCK_VARIABLE):
                self.console.print(line, soft_wrap=True, markup=False)

    def _mark_dead(self, environment: Mapping[str, str], *options: str) -> None:
        """Tells the server and the store which runs have no process any more; what it marks is printed."""
        ran = run_module("flows.dead_runs", *options, environment=environment, seconds=MARK_SECONDS)
        for line in ran.out.splitlines():
            self.console.print(line, soft_wrap=True, markup=False)
        if ran.fault is not None:
            self.console.print(
                f'runs that ended without a word could not be marked: {ran.fault}; the next "medius up" tries again',
                soft_wrap=True,
                markup=False,
            )

    def down(self, seconds: float = STOP_SECONDS) -> None:
        """Stops the stack's processes and all that they started; runs save what they have first."""
        with self._locked():
            state = self._state()
            if state is None or not (state.living() or processes.marked(state.token)):
                self.console.print("nothing is up here")
                return
            self._stop(state, list(state.living().values()), seconds)
            self._write(state.model_copy(update={"processes": ()}))
            self.console.print(f"the data and logs stay in {self.folder}", soft_wrap=True)

    def _stop(self, state: StackState, chosen: list[StackProcess], seconds: float = STOP_SECONDS) -> None:
        """Workers and runs first, in that order; then the servers, which need to hear a run's last words."""
        servers = [process for name in SERVERS for process in chosen if process.name == name]
        workers = [process for process in chosen if process not in servers]
        stays = {process.pid for process in state.living().values() if process not in workers}
        if workers:
            self.console.print("stopping the workers; what they run is saved first, which takes a large model minutes")
        num_runs = processes.end_work(state.token, {process.pid for process in workers}, stays, seconds)
        for process in workers:
            self.console.print(f"stopped {process.name} (process {process.pid})")
        if num_runs:
            runs = "1 flow run" if num_runs == 1 else f"{num_runs} flow runs"
            self.console.print(f"stopped {runs}; what was finished is kept, and a new run goes on from there")
        if any(process.name == "prefect" for process in servers):
            # One that is killed, or ends half started, can say nothing itself.
            self._mark_dead(self._service_environment(state), "--settled", "0")
        for process in servers:
            processes.end_tree(state.token, process.pid, SERVER_STOP_SECONDS)
            self.console.print(f"stopped {process.name} (process {process.pid})")

    def _tell(self, ports: Ports, already: set[str]) -> None:
        state = self._state()
        assert state is not None, "it was written when the first process started"
        for process in state.processes:
            was = "runs already" if process.name in already else "started"
            self.console.print(f"{process.name:14} {was}, process {process.pid}, log {process.log}", soft_wrap=True)
        environment = (self.folder / "environment").resolve()
        self.console.print(f"dashboard      http://{services.HOST}:{ports.prefect}")
        self.console.print(f"S3             {ports.endpoint}, store {services.STORE}")
        self.console.print(
            f"environment    source {shlex.quote(str(environment))}\n"
            f"               sets {', '.join(client_environment(self.folder, ports))}",
            soft_wrap=True,
        )
        run = f"{shlex.quote(_prefect())} deployment run distillation/micro --watch"
        self.console.print(f"then           {run}", soft_wrap=True, markup=False)

    def _service_environment(self, state: StackState) -> dict[str, str]:
        client = client_environment(self.folder, state.ports)
        return service_environment(client, (self.folder / "prefect").resolve(), state.token)

    def _state(self) -> StackState | None:
        file = self.folder / "state.json"
        try:
            return StackState.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise MediusError(
                f"{file} cannot be read ({error.errors()[0]['msg']}); end the processes that it names and delete it"
            ) from error

    def _write(self, state: StackState) -> None:
        temporary = self.folder / ".state.json"
        temporary.write_text(state.model_dump_json(indent=1))
        temporary.replace(self.folder / "state.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInputError(
                    f'another "medius up" or "medius down" is at work in {self.folder}; wait for it'
                ) from None
            yield


def _prefect() -> str:
    """Prefect's command as a shell in this folder calls it, also where the environment is not activated."""
    command = Path(sys.executable).with_name("prefect")
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)
