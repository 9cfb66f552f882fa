"""The `medius` command.

Exit codes: 0 done, 2 bad input, 3 a gate failed, 4 interrupted and resumable, 1 anything else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from flows import operating
from flows.addresses import DEFAULT_STORE, find_artifact, find_key, is_artifact
from flows.prefect_server import losing_the_server, start_own_server
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, InterruptedRunError, MediusError
from tasks.artifacts.runs import all_runs
from tasks.artifacts.store import Store, open_store
from tasks.logits.schema import SCHEMA_FILE
from tasks.runtime.declare import Step
from tasks.runtime.gates import accept as accept_gate
from tasks.runtime.state import StepState, step_state
from tasks.runtime.state import explain as explain_step

if TYPE_CHECKING:
    from flows.ablation_plan import Kind

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
ablate = typer.Typer(no_args_is_help=True)
app.add_typer(
    ablate,
    name="ablate",
    help="Compare candidates for one decision of a profile and write the best into it; or a recipe's arms.",
)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)

ProfileName = Annotated[str, typer.Argument(help="A file in configs/ by name, or a path to a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override one value: --set a.b.c=value. Repeatable.")]
StoreUri = Annotated[str | None, typer.Option("--store", help="Use this store: s3://bucket/prefix or a directory.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same topology on 0.1 % of the data, under its own keys.")]


def _steps(profile: str, overrides: list[str] | None, store: str | None, smoke: bool) -> tuple[list[Step], Store, str]:
    from flows.dag import build
    from flows.profiles import load_profile

    loaded = load_profile(profile, overrides or (), store, smoke=smoke)
    return build(loaded), open_store(loaded.store), loaded.name


@app.command()
def run(
    profile: ProfileName,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    until: Annotated[
        str | None,
        typer.Option("--until", help="Run only what this stage needs, and it; `prepared`: all models to be prepared."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Begin stages over the cost of the profile's `approval` without asking.")
    ] = False,
) -> None:
    """Run a recipe, or what of it is not finished; print the results."""
    from flows.profiles import load_profile
    from flows.publishing import check_publishable
    from flows.run_options import RecipeOptions

    # Everything a profile can get wrong is said before a server boots and Prefect is imported.
    loaded = load_profile(profile, set_ or (), store, smoke=smoke)
    options = RecipeOptions.of(overrides=set_ or (), store=store, smoke=smoke, until=until)
    if until is None:
        check_publishable(loaded)
    opened = open_store(loaded.store)
    from flows.dag import build

    steps = build(loaded, until)
    if loaded.approval is not None:
        from flows.approval import Approvals

        approvals = Approvals(loaded.approval, steps, opened)
        approvals.ask(_confirm if sys.stdin.isatty() else None, approved=yes)
    wait_until_up = start_prefect()
    from flows.pipeline import distillation
    from flows.results import print_results
    from flows.run_report import report_line

    wait_until_up()
    with losing_the_server():
        references = distillation(profile, options)
    if until is None:
        print_results(steps, opened, console)
        console.print(f"report: {report_line(loaded, steps, opened)}", soft_wrap=True, markup=False)
    else:
        for label, uri in references.items():
            console.print(f"{label}: {uri}", soft_wrap=True, markup=False)


def _confirm(expensive: list[str]) -> bool:
    for said in expensive:
        console.print(said, soft_wrap=True, markup=False)
    return typer.confirm("That is over the profile's `approval`. Begin?", err=True)


def start_prefect() -> Callable[[], None]:
    """Call before the first import of Prefect. The function returned waits for a server, and from then on the first
    Ctrl-C or SIGTERM asks the run's workers to save what they have and end.
    """
    wait_until_up = start_own_server(prepare_prefect())

    def wait() -> None:
        from flows.opened import STOP

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            if STOP.is_set():
                raise KeyboardInterrupt
            STOP.set()
            Console(stderr=True).print("stopping: each stage saves what it has; press Ctrl-C again to give that up")

        wait_until_up()
        signal.signal(signal.SIGINT, interrupt)
        # While the flow runs Prefect has a handler of its own, which cancels the flow and then calls this one.
        signal.signal(signal.SIGTERM, interrupt)

    return wait


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
        # Prefect waits twice as long before each further try: a server may be away for 4 minutes.
        "PREFECT_CLIENT_MAX_RETRIES": "7",
        # The one sentence of a failure is printed at the end; tracebacks stay with the run, on the dashboard.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return Path(os.environ["PREFECT_HOME"])


@app.command()
def plan(
    profile: ProfileName,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    surgery: Annotated[
        bool, typer.Option("--surgery", help="Also what each transplant makes the rows of the new tokens of.")
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="What each stage takes instead, and what it costs.")] = False,
    tokens: Annotated[
        float | None, typer.Option("--tokens", help="With --cost: training tokens of each dumped corpus, as 5e8.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="With --cost: a name of tasks/planning/hardware.yaml.")
    ] = None,
    hardware_file: Annotated[
        str | None, typer.Option("--hardware-file", help="With --cost: further hardware, in a file of that form.")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", help="With --cost: NAME=USD, an hour of one device. Repeatable.")
    ] = None,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", help="With --cost: name=value of what is assumed. Repeatable.")
    ] = None,
) -> None:
    """Show every stage with its key, its inputs and its state; needs no network where the store is a folder."""
    if cost:
        from flows.cost_table import show_cost
        from flows.costs import CostOptions

        options = CostOptions.read(
            tokens=tokens, hardware=hardware, hardware_file=hardware_file, prices=price or (), assume=assume or ()
        )
        show_cost(profile, set_ or (), store, smoke, options, console)
        return
    if tokens is not None or hardware or hardware_file or price or assume:
        raise BadInputError("--tokens, --hardware, --hardware-file, --price and --assume are for --cost; add it")
    steps, opened, name = _steps(profile, set_, store, smoke)
    table = Table(title=escape(f"{name} in {opened.uri}"), title_justify="left")
    for column in ("stage", "key", "inputs", "state", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in {"stage", "key", "state"})
    for state in (step_state(step, opened) for step in steps):
        table.add_row(
            state.step.label,
            state.step.key[:16],
            ", ".join(source.label for source in state.step.inputs.values()),
            state.state,
            escape(state.reason),
        )
    console.print(table)
    if surgery:
        from flows.surgery import print_surgeries

        print_surgeries(steps, opened, console)


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
            console.print(line, soft_wrap=True, markup=False)


@app.command()
def status(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Show the last run of a profile and where each of its stages stands."""
    steps, opened, name = _steps(profile, set_, store, smoke)
    runs = [record for record in all_runs(opened) if record.profile == name]
    if not runs:
        console.print(f'{name} has not been run in {opened.uri}; start it with "medius run {profile}"', markup=False)
    for record in runs[-3:]:
        console.print(record.describe(), soft_wrap=True, markup=False)
    states = [step_state(step, opened) for step in steps]
    table = Table("stage", "state", "why", "seconds")
    for state in states:
        seconds = f"{state.manifest.provenance.seconds:.0f}" if state.manifest else ""
        table.add_row(state.step.label, state.state, escape(state.reason), seconds)
    console.print(table)
    console.print(_summary(states))


def _summary(states: list[StepState]) -> str:
    finished = sum(state.state == "finished" for state in states)
    return f"{finished} of {len(states)} stages finished"


@app.command()
def report(
    profile: ProfileName,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where the HTML page goes; else build/reports/NAME.html.")
    ] = None,
) -> None:
    """Write a run's report as Markdown and as one HTML page; print their paths, the page's as the last word."""
    from flows.dag import build
    from flows.profiles import load_profile
    from flows.run_report import write_reports

    loaded = load_profile(profile, set_ or (), store, smoke=smoke)
    for path in write_reports(loaded, build(loaded), open_store(loaded.store), html):
        console.print(str(path), soft_wrap=True, markup=False)


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
    console.print(f"accepted {gate} of {artifact.uri}", soft_wrap=True, markup=False)


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="A profile, the URI of an artifact, or the first 16 digits of a key.")],
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    recompute: Annotated[
        int, typer.Option("--recompute", min=0, help="Positions of a logit store that its teacher computes again.")
    ] = 0,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Compare with this model instead, such as the one that the teacher quantises."),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", min=0, help="With --against: nats on average that are not too many.")
    ] = None,
) -> None:
    """Read every byte of finished artifacts and compare it with its checksum; of logits, check every row."""
    from flows.verification import AUDITED_POSITIONS, Reference, Verification

    if max_kl is not None and against is None:
        raise BadInputError("--max-kl is a limit for --against, which names no model; give both")
    reference = None if against is None else Reference.at(against, store, max_kl)
    verification = Verification(console, recompute or (AUDITED_POSITIONS if against else 0), reference)
    if is_artifact(target):
        if set_ or smoke:
            raise BadInputError(f"--set and --smoke change a profile, and {target} is an artifact; leave them out")
        artifact, manifest = find_artifact(target, store)
        if (recompute or against) and manifest.object(SCHEMA_FILE) is None:
            option = "--recompute" if recompute else "--against"
            raise BadInputError(f"{artifact.uri} is no logit store, so there is nothing for {option}; leave it out")
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
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="The URI of a logit store, a surgery or a model, or the first 16 digits of its key; several models "
            "are compared with the first.",
        ),
    ],
    row: Annotated[int, typer.Option("--row", min=0, help="The document to show, by its place in the split.")] = 0,
    document: Annotated[str | None, typer.Option("--document", help="The document to show, by its row id.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train or heldout; the first that was dumped.")] = None,
    positions: Annotated[int, typer.Option("--positions", min=0, help="Positions of the document to show.")] = 20,
    store: StoreUri = None,
) -> None:
    """Show a logit store: its format, captured mass, one document as text, and a picture whose path comes last.

    Of a surgery: what it made the rows of. Of models: bits per byte on four kinds of text.
    """
    from flows.inspection import inspect_store
    from flows.model_inspection import is_model, print_models
    from flows.surgery import SURGERY_FILE, print_record

    found = [find_artifact(target, store) for target in targets]
    artifact, manifest = found[0]
    is_surgery = manifest.object(SURGERY_FILE) is not None
    if len(found) == 1 and is_surgery:
        print_record(artifact, manifest, console)
    if len(found) > 1 or is_model(manifest):
        print_models(found, console)
    if len(found) > 1 or is_model(manifest) or is_surgery:
        return
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


Write = Annotated[
    bool | None,
    typer.Option(
        "--write/--no-write",
        help="Write the choice into the profile's file; the default, unless --set or --smoke changed the profile.",
    ),
]


@ablate.command()
def reversion(
    profile: ProfileName,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Whose reversion, where several branches have one.")
    ] = None,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    write: Write = None,
) -> None:
    """Bring a trained branch back into its own vocabulary by each strategy, and compare what comes out."""
    _ablate("reversion", profile, branch, set_ or [], store, smoke, write)


@ablate.command()
def fusion(
    profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False, write: Write = None
) -> None:
    """Fuse the branches by each method and weights of a grid, and compare what comes out."""
    _ablate("fusion", profile, None, set_ or [], store, smoke, write)


@ablate.command()
def recipe(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Measure what each part of a recipe is worth: without teachers, with one alone, without fine-tuning, and all."""
    from flows.ablation_recipe import plan_recipe
    from flows.profiles import load_profile

    loaded = load_profile(profile, set_ or (), store, smoke=smoke)
    open_store(loaded.store)
    plan_recipe(loaded)
    wait_until_up = start_prefect()
    from flows.ablate import ablation, report_recipe

    wait_until_up()
    ablation("recipe", profile, None, set_ or [], store, smoke)
    loaded = load_profile(profile, set_ or (), store, smoke=smoke)
    report_recipe(plan_recipe(loaded), loaded, console)


def _ablate(
    kind: Kind,
    profile: str,
    branch: str | None,
    overrides: list[str],
    store: str | None,
    smoke: bool,
    write: bool | None,
) -> None:
    from flows.ablation_plan import plan_ablation
    from flows.profile_edit import edited, read_text
    from flows.profiles import load_profile, profile_path

    loaded = load_profile(profile, overrides, store, smoke=smoke)
    open_store(loaded.store)
    planned, path = plan_ablation(kind, loaded, branch), profile_path(profile)
    write = not overrides and not smoke if write is None else write
    # A profile that could not take the choice is refused before the work.
    if write and not os.access(path, os.W_OK):
        raise BadInputError(f"{path} cannot be written; make it writable, or add --no-write to only see the choice")
    for edits in planned.edits.values() if write else ():
        edited(read_text(path), edits)
    wait_until_up = start_prefect()
    from flows.ablate import ablation, report_ablation

    wait_until_up()
    ablation(kind, profile, branch, overrides, store, smoke)
    # The file as it is now: it may have been edited during the hours that this took.
    loaded = load_profile(profile, overrides, store, smoke=smoke)
    report_ablation(plan_ablation(kind, loaded, branch), loaded, path, console, write=write)


operating.add_commands(app, console)


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
