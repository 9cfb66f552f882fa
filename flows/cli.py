"""The `medius` command.

Exit codes: 0 done, 2 bad input, 3 a gate failed, 4 interrupted and resumable, 1 anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from flows import looking, operating
from flows.ablating import ablate
from flows.addresses import DEFAULT_STORE, find_key
from flows.arguments import ArtifactStore, ProfileName, Sets, Smoke, StoreUri, console
from flows.prefect_server import losing_the_server, start_prefect
from tasks.artifacts.errors import InterruptedRunError, MediusError
from tasks.artifacts.store import open_store
from tasks.runtime.gates import accept as accept_gate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(
    ablate,
    name="ablate",
    help="Compare candidates for one decision of a profile and write the best into it; or a recipe's arms.",
)


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


app.command()(looking.plan)
app.command()(looking.explain)
app.command()(looking.status)


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
    """Write a run's report as Markdown and as one HTML page; print both paths, the page's last."""
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
    store: ArtifactStore = None,
) -> None:
    """Go on in spite of a failed gate; the reason is kept beside the artifact."""
    artifact = find_key(open_store(store or DEFAULT_STORE), key)
    accept_gate(artifact, gate, reason)
    console.print(f"accepted {gate} of {artifact.uri}", soft_wrap=True, markup=False)


app.command()(looking.verify)
app.command()(looking.inspect)
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
