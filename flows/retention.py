"""What `medius gc` keeps: the artifacts of profiles, and the runs that a store goes on remembering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.errors import MediusError
from tasks.artifacts.runs import RunRecord, retained


@dataclass(frozen=True)
class Kept:
    """What the removal of garbage starts from."""

    roots: set[str]
    """Folders of artifacts, as `Step.directory`."""
    forgotten: list[RunRecord]
    """Runs of which nothing is kept, so that their records can go."""


def find_kept(runs: Sequence[RunRecord], profiles: Sequence[str], since: datetime, tell: Callable[[str], None]) -> Kept:
    """Reads the profiles and chooses among the runs.

    Args:
        runs: oldest first.
        profiles: paths besides those of configs/; one that does not load is an error, as its owner asked to keep it.
        since: runs that began or ended since then are kept.
        tell: called with a sentence on each profile of configs/ that does not load, and each run that may not run.
    """
    roots: set[str] = set()
    unread: set[str] = set()
    for path in sorted(CONFIGS.glob("*.yaml")):
        try:
            roots |= _folders(str(path))
        except Exception as error:
            why = str(error) if isinstance(error, MediusError) else f"{path}: {type(error).__name__}: {error}"
            name = _name(path)
            tell(f"{why}; so what all recorded runs of {name} made or used is kept in its place")
            unread.add(name)
    for profile in profiles:
        roots |= _folders(profile)
    chosen = {run.run for run in retained(runs, since)}
    kept = [run for run in runs if run.run in chosen or run.profile.partition("-ablate-")[0] in unread]
    for run in kept:
        roots |= {step.directory for step in run.steps}
        if run.may_run() and run.last_moment() < since:
            host = f"on {run.process.host}" if run.process is not None else "on a host that its record does not name"
            tell(
                f"run {run.run} of {run.profile} began {run.started} {host} and may be running, so what it uses is "
                f"kept; if it has ended, delete runs/{run.run}.json"
            )
    ids = {run.run for run in kept}
    return Kept(roots, [run for run in runs if run.run not in ids])


def _folders(profile: str) -> set[str]:
    return {step.directory for smoke in (False, True) for step in build(load_profile(profile, smoke=smoke))}


def _name(path: Path) -> str:
    """The name of a profile that does not load, as far as it can be told."""
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["name"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return path.stem
