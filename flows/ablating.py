"""`medius ablate`: candidates for one decision of a profile, or the arms of a recipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from flows.arguments import ProfileName, Sets, Smoke, StoreUri, console
from flows.prefect_server import start_prefect
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import open_store

if TYPE_CHECKING:
    from flows.ablation_plan import Kind

ablate = typer.Typer(no_args_is_help=True)

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
