"""`medius gc`: what of a store, and of this machine's scratch and fetched inputs, no profile, run or lease needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from flows.retention import find_kept
from tasks.artifacts.errors import StoreError
from tasks.artifacts.garbage import ARTIFACTS, DAY, find_garbage, folder_of, is_leased
from tasks.artifacts.removal import remove
from tasks.artifacts.runs import RunRecord, all_runs, read_run, run_path, runs_written_since
from tasks.artifacts.store import Store, UnfinishedUpload
from tasks.planning.quantities import byte_size
from tasks.runtime.launch_folder import SCRATCH, dead_launches, remove_dead
from tasks.worker.input_cache import INPUT_CACHE, INPUTS, idle_inputs, remove_idle

_KEY_DIGITS = 16
"""Of an artifact's key, at the end of its folder's name."""


def collect(
    store: Store, console: Console, profiles: Sequence[str], keep_days: float, grace_hours: float, *, delete: bool
) -> None:
    """Prints what nothing needs, each as it is found, and removes it if `delete`.

    Args:
        profiles: paths of further profiles whose artifacts are kept; those of configs/ always are.
        keep_days: runs that began or ended in this time keep what they made or used; logs of workers stay as long.
        grace_hours: what was written in this time is kept, whatever it is.
    """
    _Collection(store, console, store.now(), 3600 * grace_hours, delete).run(profiles, keep_days)


@dataclass
class _Collection:
    store: Store
    console: Console
    began: float
    """By the store's clock; runs that were written since are read again before anything of theirs could go."""
    grace: float
    """Seconds."""
    delete: bool
    objects: int = 0
    size: int = 0
    """Bytes."""
    found: int = 0

    def run(self, profiles: Sequence[str], keep_days: float) -> None:
        kept = find_kept(
            all_runs(self.store), profiles, datetime.now(UTC) - timedelta(seconds=DAY * keep_days), self._say
        )
        for garbage in find_garbage(self.store, kept.roots, self.grace, log_seconds=DAY * keep_days, tell=self._say):
            what = f"{garbage.folder}: {len(garbage.paths):,} objects, {byte_size(garbage.size)}: {garbage.reason}"
            gone = not self.delete or remove(self.store, garbage, self.grace, self._claimed)
            self._tell(what if gone else f"{what}; left, as a run came back to it meanwhile")
            if gone:
                self.objects += len(garbage.paths)
                self.size += garbage.size
        self._forget(kept.forgotten)
        self._abort_uploads()
        for lock_file in dead_launches(SCRATCH.resolve()):
            self._tell(f"{lock_file.with_suffix('')}: scratch of a launch that was killed")
            if self.delete:
                remove_dead(lock_file)
        self._remove_inputs(kept.roots)
        done = "removed" if self.delete else "could be removed"
        self._say(f"{self.objects:,} objects, {byte_size(self.size)}, {done} from {self.store.uri}")
        if self.found and not self.delete:
            self._say("nothing was removed; add --delete to do that")

    def _claimed(self) -> set[str]:
        """The folders that runs which began or ended since this collection began name."""
        return {step.directory for run in runs_written_since(self.store, self.began) for step in run.steps}

    def _forget(self, runs: Sequence[RunRecord]) -> None:
        """Removes records of runs; a retry under the same name may have written one anew meanwhile."""
        for run in runs:
            self._tell(f"{run_path(run.run)}: of {run.profile}, began {run.started}: nothing of it is kept")
            self.objects += 1
            if self.delete and read_run(self.store, run.run) == run:
                self.store.delete(run_path(run.run))

    def _abort_uploads(self) -> None:
        try:
            for upload in self.store.unfinished_uploads():
                if upload.started + self.grace <= self.began and not self._is_made(upload):
                    self._tell(f"{upload.path}: an upload that its writer never finished")
                    if self.delete:
                        self.store.abort_upload(upload)
        except StoreError as error:
            # Not every server can list them; the rest is done by now.
            self._say(f"unfinished uploads were not looked at: {error}")

    def _remove_inputs(self, roots: Collection[str]) -> None:
        """Removes what this host keeps of artifacts that it fetched: of others than these roots, of whatever store."""
        keys = {root[-_KEY_DIGITS:] for root in roots}
        named = os.environ.get(INPUT_CACHE)
        for cache in (SCRATCH.resolve() / INPUTS, *([Path(named)] if named else [])):
            for folder in idle_inputs(cache, keys, self.grace):
                size = sum(file.lstat().st_size for file in folder.rglob("*"))
                what = f"{folder}: {byte_size(size)}: an input on this host that no profile or retained run has"
                gone = not self.delete or remove_idle(folder, self.grace)
                self._tell(what if gone else f"{what}; left, as a stage came back to it meanwhile")

    def _is_made(self, upload: UnfinishedUpload) -> bool:
        """Whether a living run holds the artifact that this is to be a part of."""
        folder = folder_of(upload.path)
        in_artifact = upload.path.startswith(f"{ARTIFACTS}/")
        return in_artifact and is_leased(self.store, folder, self.store.list(folder))

    def _tell(self, what: str) -> None:
        """Prints one piece of garbage."""
        self.found += 1
        self._say(what)

    def _say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True, markup=False)
