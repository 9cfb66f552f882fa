"""What several verbs of `medius` take, and where they print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from tasks.artifacts.store import Store, open_store
from tasks.runtime.declare import Step

console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)

ProfileName = Annotated[str, typer.Argument(help="A file in configs/ by name, or a path to a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override one value: --set a.b.c=value. Repeatable.")]
_STORE = "Use this store: s3://bucket/prefix or a directory. Default: MEDIUS_STORE, else"
StoreUri = Annotated[str | None, typer.Option("--store", help=f"{_STORE} the profile's.")]
ArtifactStore = Annotated[str | None, typer.Option("--store", help=f"{_STORE} .medius/store.")]
"""Where an artifact is named by its key, and no profile says where it is."""
StoreOfEither = Annotated[
    str | None, typer.Option("--store", help=f"{_STORE} the profile's; for a key, else .medius/store.")
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="The same stages and models on 0.1 % of the data, without gates, under their own keys."
    ),
]


def steps_of(
    profile: str, overrides: list[str] | None, store: str | None, smoke: bool
) -> tuple[list[Step], Store, str]:
    """The steps of a profile, its store and its name."""
    from flows.dag import build
    from flows.profiles import load_profile

    loaded = load_profile(profile, overrides or (), store, smoke=smoke)
    return build(loaded), open_store(loaded.store), loaded.name
