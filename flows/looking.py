"""The verbs of `medius` that only look: plan, explain, status, verify, inspect. None of them loads Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.addresses import find_artifact, is_artifact
from flows.arguments import ArtifactStore, ProfileName, Sets, Smoke, StoreOfEither, StoreUri, console, steps_of
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.runs import all_runs
from tasks.logits.schema import SCHEMA_FILE
from tasks.runtime.state import StepState, step_states
from tasks.runtime.state import explain as explain_step


def plan(
    profile: ProfileName,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
    surgery: Annotated[
        bool,
        typer.Option("--surgery", help="Also show what the rows of each transplant's new tokens will be made from."),
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Show what each stage needs and costs instead.")] = False,
    tokens: Annotated[
        float | None, typer.Option("--tokens", help="With --cost: training tokens of each dumped corpus, as 5e8.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="With --cost: a name of tasks/planning/hardware.yaml.")
    ] = None,
    hardware_file: Annotated[
        str | None,
        typer.Option(
            "--hardware-file", help="With --cost: a file like tasks/planning/hardware.yaml with further hardware."
        ),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", help="With --cost: NAME=USD, an hour of one device. Repeatable.")
    ] = None,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", help="With --cost: name=value of what is assumed. Repeatable.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="With --cost: nodes with accelerators; 1 by default.")
    ] = None,
) -> None:
    """Show every stage with its key, its inputs and its state.

    With a folder as store only --surgery may need the network, for tokenizers.
    """
    if cost:
        from flows.cost_table import show_cost
        from flows.costs import CostOptions

        options = CostOptions.read(
            tokens=tokens,
            hardware=hardware,
            hardware_file=hardware_file,
            prices=price or (),
            assume=assume or (),
            nodes=nodes or 1,
        )
        show_cost(profile, set_ or (), store, smoke, options, console)
        return
    if tokens is not None or hardware or hardware_file or price or assume or nodes:
        raise BadInputError(
            "--tokens, --hardware, --hardware-file, --price, --assume and --nodes are for --cost; add it"
        )
    steps, opened, name = steps_of(profile, set_, store, smoke)
    table = Table(title=escape(f"{name} in {opened.uri}"), title_justify="left")
    for column in ("stage", "key", "inputs", "state", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in {"stage", "key", "state"})
    for state in step_states(steps, opened):
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

        print_surgeries(steps, opened, console, Path("build/surgery") / name)


def explain(
    profile: ProfileName,
    stage: Annotated[str | None, typer.Argument(help="A stage's label, as plan shows it.")] = None,
    set_: Sets = None,
    store: StoreUri = None,
    smoke: Smoke = False,
) -> None:
    """Say why stages are not reused: the fields in which each differs from the nearest finished artifact."""
    steps, opened, _name = steps_of(profile, set_, store, smoke)
    chosen = [step for step in steps if stage in {None, step.label}]
    if not chosen:
        raise BadInputError(f"there is no stage {stage!r}; the stages are: {', '.join(step.label for step in steps)}")
    for step in chosen:
        for line in explain_step(step, opened):
            console.print(line, soft_wrap=True, markup=False)


def status(profile: ProfileName, set_: Sets = None, store: StoreUri = None, smoke: Smoke = False) -> None:
    """Show the last three runs of a profile and where each of its stages stands."""
    steps, opened, name = steps_of(profile, set_, store, smoke)
    runs = [record for record in all_runs(opened) if record.profile == name]
    if not runs:
        console.print(f'{name} has not been run in {opened.uri}; start it with "medius run {profile}"', markup=False)
    for record in runs[-3:]:
        console.print(record.describe(), soft_wrap=True, markup=False)
    states = step_states(steps, opened)
    table = Table("stage", "state", "why", "seconds")
    for state in states:
        seconds = f"{state.manifest.provenance.seconds:.0f}" if state.manifest else ""
        table.add_row(state.step.label, state.state, escape(state.reason), seconds)
    console.print(table)
    console.print(_summary(states))


def _summary(states: list[StepState]) -> str:
    finished = sum(state.state == "finished" for state in states)
    return f"{finished} of {len(states)} stages finished"


def verify(
    target: Annotated[str, typer.Argument(help="A profile, the URI of an artifact, or the first 16 digits of a key.")],
    set_: Sets = None,
    store: StoreOfEither = None,
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
    processes: Annotated[
        int,
        typer.Option(
            "--processes", min=1, help="With --recompute or --against: GPUs of this host that hold the model together."
        ),
    ] = 1,
) -> None:
    """Read every byte of finished artifacts and compare it with its checksum; of logits, check every row."""
    from flows.verification import AUDITED_POSITIONS, Reference, Verification

    if max_kl is not None and against is None:
        raise BadInputError("--max-kl is a limit for --against, which names no model; give both")
    if processes > 1 and not recompute and against is None:
        raise BadInputError("--processes are for --recompute or --against, and neither is given; give one of them")
    reference = None if against is None else Reference.at(against, store, max_kl)
    verification = Verification(console, recompute or (AUDITED_POSITIONS if against else 0), reference, processes)
    if is_artifact(target):
        if set_ or smoke:
            raise BadInputError(f"--set and --smoke change a profile, and {target} is an artifact; leave them out")
        artifact, manifest = find_artifact(target, store)
        if (recompute or against) and manifest.object(SCHEMA_FILE) is None:
            option = "--recompute" if recompute else "--against"
            raise BadInputError(f"{artifact.uri} is no logit store, so there is nothing for {option}; leave it out")
        verification.check(manifest.label, artifact, manifest)
    else:
        steps, opened, _name = steps_of(target, set_, store, smoke)
        for step in steps:
            artifact = Artifact(opened, step.directory)
            if (found := artifact.manifest()) is not None:
                verification.check(step.label, artifact, found)
    verification.finish()


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
    store: ArtifactStore = None,
) -> None:
    """Show a logit store, what a surgery made its rows of, or models' bits per byte.

    Of a logit store: its format, captured mass, one document as text, and a picture whose path comes last. Of models:
    bits per byte on four kinds of text.
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
