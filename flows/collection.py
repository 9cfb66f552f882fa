"""`medius gc`: what a store and this machine's scratch hold that no profile, run or lease needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from flows.opened import SCRATCH
from flows.pipeline import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.errors import MediusError
from tasks.artifacts.garbage import DAY, find_garbage, remove
from tasks.artifacts.runs import RunRecord, all_runs
from tasks.artifacts.store import Store
from tasks.runtime.launch_folder import dead_launches, remove_dead

_UNITS = ("B", "kB", "MB", "GB", "TB")


def collect(
    store: Store, console: Console, profiles: Sequence[str], keep_days: float, grace_hours: float, *, delete: bool
) -> None:
    """Prints what nothing needs, and removes it if `delete`.

    Args:
        profiles: paths of further profiles whose artifacts are kept; those of configs/ always are.
        keep_days: runs that began or ended in this time keep what they made or used.
        grace_hours: what was written in this time is kept, whatever it is.
    """
    roots = _roots(store, profiles, keep_days)
    table = Table("folder", "objects", "size", "why nothing needs it")
    grace, found, size, left = 3600 * grace_hours, 0, 0, 0
    for garbage in find_garbage(store, roots, grace):
        table.add_row(garbage.folder, f"{len(garbage.paths):,}", _bytes(garbage.size), garbage.reason)
        if delete and not remove(store, garbage, grace):
            left += 1
            continue
        found += len(garbage.paths)
        size += garbage.size
    for lock_file in dead_launches(SCRATCH.resolve()):
        table.add_row(str(lock_file.with_suffix("")), "", "", "scratch of a launch that was killed")
        if delete:
            remove_dead(lock_file)
    if table.row_count:
        console.print(table)
    done = "removed" if delete else "could be removed"
    console.print(f"{found:,} objects, {_bytes(size)}, {done} from {store.uri}", soft_wrap=True)
    if left:
        console.print(f"{left} folders were left: runs came back to them meanwhile")
    if table.row_count and not delete:
        console.print("nothing was removed; add --delete to do that")


def _roots(store: Store, profiles: Sequence[str], keep_days: float) -> set[str]:
    roots: set[str] = set()
    for profile in (*sorted(str(path) for path in CONFIGS.glob("*.yaml")), *profiles):
        for smoke in (False, True):
            roots |= {step.directory for step in build(load_profile(profile, smoke=smoke))}
    since = datetime.now(UTC) - timedelta(seconds=DAY * keep_days)
    runs = all_runs(store)
    last = {record.profile: record for record in runs}
    for record in runs:
        if record is last[record.profile] or _moment(record) >= since:
            roots |= {step.directory for step in record.steps}
    return roots


def _moment(record: RunRecord) -> datetime:
    text = record.ended or record.started
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise MediusError(f"the run {record.run} has the time {text!r}, which is none; correct its record") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _bytes(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"
