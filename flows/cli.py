"""The `medius` command.

Exit codes: 0 done, 2 bad input, 3 a gate failed, 4 interrupted and resumable, 1 anything else.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from flows.addresses import DEFAULT_STORE, find_artifact, find_key, is_artifact
from flows.prefect_server import start_own_server
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, InterruptedRunError, MediusError
from tasks.artifacts.runs import all_runs
from tasks.artifacts.store import Store, open_store
from tasks.logits.schema import SCHEMA_FILE
from tasks.runtime.declare import Step
from tasks.runtime.gates import accept as accept_gate
from tasks.runtime.state import StepState, step_state
from tasks.runtime.state import explain as explain_step

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)

ProfileName = Annotated[str, typer.Argument(help="A file in configs/ by name, or a path to a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override one value: --set a.b.c=value. Repeatable.")]
StoreUri = Annotated[str | None, typer.Option("--store", help="Use this store: s3://bucket/prefix or a directory.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same topology on 0.1 % of the data, under its own keys.")]


def _steps(profile: str, overrides: list[str] | None, store: str | None, smoke: bool) -> tuple[list[Step], Store, str]:
    from flows.pipeline import build
    from flows.profiles import load_profile

    loaded = load_profile(profile, overrides or (), store, smoke=smoke)
    return build(loaded), open_store(loaded.store), loaded.name


@app.command()
def run(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Run a recipe, or what of it is not finished; print the results."""
    from flows.profiles import load_profile

    # Everything a profile can get wrong is said before a server boots and Prefect is imported.
    loaded = load_profile(profile, set_ or (), store, smoke=smoke)
    opened = open_store(loaded.store)
    wait_until_up = start_own_server(prepare_prefect())
    from flows.opened import STOP
    from flows.pipeline import build, distillation
    from flows.results import print_results

    steps = build(loaded)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if STOP.is_set():
            raise KeyboardInterrupt
        STOP.set()
        Console(stderr=True).print("stopping: each stage saves what it has; press Ctrl-C again to give that up")

    wait_until_up()
    signal.signal(signal.SIGINT, interrupt)
    # While the flow runs Prefect has a handler of its own, which cancels the flow and then calls this one.
    signal.signal(signal.SIGTERM, interrupt)
    distillation(profile, set_ or [], store, smoke)
    print_results(steps, opened, console)


def prepare_prefect() -> Path:
    """Settings for a flow run from the command line; what the user has set wins. Returns Prefect's home."""
    home = Path(".medius/prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # A loaded machine has been seen to need 48 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # The one sentence of a failure is printed at the end; tracebacks stay with the run, on the dashboard.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        # A killed flow process is noticed by missed heartbeats.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return Path(os.environ["PREFECT_HOME"])


@app.command()
def plan(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Show every stage with its key, its inputs and its state; needs no network where the store is a folder."""
    steps, opened, name = _steps(profile, set_, store, smoke)
    table = Table(title=f"{name} in {opened.uri}", title_justify="left")
    for column in ("stage", "key", "inputs", "state", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in {"stage", "key", "state"})
    for state in (step_state(step, opened) for step in steps):
        table.add_row(
            state.step.label,
            state.step.key[:16],
            ", ".join(source.label for source in state.step.inputs.values()),
            state.state,
            state.reason,
        )
    console.print(table)


@app.command()
def explain(
    profile: ProfileName,
    stage: Annotated[str | None, typer.Argument(help="A stage's label, as plan shows it.")] = None,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
) -> None:
    """Say why stages are not reused: the fields in which each differs from the nearest finished artifact."""
    steps, opened, _name = _steps(profile, set_, store, smoke)
    chosen = [step for step in steps if stage in {None, step.label}]
    if not chosen:
        raise BadInputError(f"there is no stage {stage!r}; the stages are: {', '.join(step.label for step in steps)}")
    for step in chosen:
        for line in explain_step(step, opened):
            console.print(line, soft_wrap=True)


@app.command()
def status(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Show the last run of a profile and where each of its stages stands."""
    steps, opened, name = _steps(profile, set_, store, smoke)
    runs = [record for record in all_runs(opened) if record.profile == name]
    if not runs:
        console.print(f'{name} has not been run in {opened.uri}; start it with "medius run {profile}"')
    for record in runs[-3:]:
        ended = f", ended {record.ended}" if record.ended else ""
        console.print(
            f"run {record.run}: {record.state}, started {record.started}{ended} {record.message}", soft_wrap=True
        )
    states = [step_state(step, opened) for step in steps]
    table = Table("stage", "state", "why", "seconds")
    for state in states:
        seconds = f"{state.manifest.provenance.seconds:.0f}" if state.manifest else ""
        table.add_row(state.step.label, state.state, state.reason, seconds)
    console.print(table)
    console.print(_summary(states))


def _summary(states: list[StepState]) -> str:
    finished = sum(state.state == "finished" for state in states)
    return f"{finished} of {len(states)} stages finished"


@app.command()
def report(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Write a run's report as Markdown and print its path as the last word."""
    from flows.profiles import load_profile
    from tasks.publish.report import write_report

    steps, opened, name = _steps(profile, set_, store, smoke)
    states = [step_state(step, opened) for step in steps]
    target = Path("build/reports") / f"{name}.md"
    rows = [(state.step.label, state.step.stage.name, state.step.directory, state.state) for state in states]
    expected = load_profile(profile, set_ or (), store, smoke=smoke).expected
    console.print(str(write_report(opened, rows, target, name, expected or None)), soft_wrap=True)


@app.command()
def accept(
    key: Annotated[str, typer.Argument(help="The artifact's key, or its first 16 digits.")],
    gate: Annotated[str, typer.Argument(help="The failed gate.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it is right to go on.")],
    store: StoreUri = None,
) -> None:
    """Go on in spite of a failed gate; the reason is kept beside the artifact."""
    artifact = find_key(open_store(store or DEFAULT_STORE), key)
    accept_gate(artifact, gate, reason)
    console.print(f"accepted {gate} of {artifact.uri}", soft_wrap=True)


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="A profile, the URI of an artifact, or the first 16 digits of a key.")],
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    recompute: Annotated[
        int, typer.Option("--recompute", min=0, help="Positions of a logit store that its teacher computes again.")
    ] = 0,
) -> None:
    """Read every byte of finished artifacts and compare it with its checksum; of logits, check every row."""
    from flows.verification import Verification

    verification = Verification(console, recompute)
    if is_artifact(target):
        if set_ or smoke:
            raise BadInputError(f"--set and --smoke change a profile, and {target} is an artifact; leave them out")
        artifact, manifest = find_artifact(target, store)
        if recompute and manifest.object(SCHEMA_FILE) is None:
            raise BadInputError(f"{artifact.uri} is no logit store, so there is nothing to --recompute; leave it out")
        verification.check(manifest.label, artifact, manifest)
    else:
        steps, opened, _name = _steps(target, set_, store, smoke)
        for step in steps:
            artifact = Artifact(opened, step.directory)
            if (found := artifact.manifest()) is not None:
                verification.check(step.label, artifact, found)
    verification.finish()


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help="The URI of a logit store, or the first 16 digits of its key.")],
    row: Annotated[int, typer.Option("--row", min=0, help="The document to show, by its place in the split.")] = 0,
    document: Annotated[str | None, typer.Option("--document", help="The document to show, by its row id.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train or heldout; the first that was dumped.")] = None,
    positions: Annotated[int, typer.Option("--positions", min=0, help="Positions of the document to show.")] = 20,
    store: StoreUri = None,
) -> None:
    """Show a logit store: its format, captured mass, one document as text, and a picture whose path comes last."""
    from flows.inspection import inspect_store

    artifact, manifest = find_artifact(target, store)
    inspect_store(
        artifact,
        manifest,
        console,
        split=split,
        row=row,
        document=document,
        positions=positions,
        target=Path("build/inspect"),
    )


def main() -> None:
    """Entry point: expected failures become one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
        # Typer turns KeyboardInterrupt into the return value 130.
        if code == 130:
            raise InterruptedRunError("stopped; run the same command again and it goes on from what is finished")
        sys.exit(code or 0)
    except MediusError as error:
        Console(stderr=True, highlight=False).print(f"medius: {error}", soft_wrap=True, markup=False)
        sys.exit(error.exit_code)
    except TyperException as error:
        typer.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
