"""One fault's stage: a store of its own, runs of micro on it, and what every one of them is held to in the end."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.verify import find_damage
from tasks.runtime.declare import Step
from tests.e2e.micro_run import MEDIUS, MicroRun, micro_steps
from tests.faults.victim import Victim, processes_in

RUN_SECONDS = 900
"""Most that a run may take: ten times what it needs on two idle cores."""
_HELD = {"dump_logits": 4}
"""Shards that one launch has in hands at most: a dump has one in the forward pass and others on their way into the
store; every other stage has one."""


@dataclass(frozen=True)
class Saved:
    """What stood in the store at a moment."""

    manifests: dict[str, bytes]
    receipts: dict[str, dict[str, bytes]]
    """Of unfinished steps."""
    checkpoints: dict[str, int]
    """Step of the newest one, of unfinished steps that have one."""


@dataclass
class Scene:
    """A folder in which runs work, the store that they share, and the variables that lead there."""

    folder: Path
    uri: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """Beyond those of this process."""
    settings: tuple[str, ...] = ()
    """--set of every run."""
    log_folder: Path | None = None
    """Where runs print to, if not into their folder."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store: Store = open_store(self.uri)
        self.steps: dict[str, Step] = {step.label: step for step in micro_steps()}

    # What is there

    def names(self, label: str, part: str) -> set[str]:
        """Names directly below a step's shards, checkpoints, data or logs."""
        base = f"{self.steps[label].directory}/{part}"
        return {entry.path.removeprefix(f"{base}/").partition("/")[0] for entry in self.store.list(base)}

    def finished(self, label: str) -> bool:
        return self.store.exists(f"{self.steps[label].directory}/manifest.json")

    def checkpoint(self, label: str) -> int:
        """Step of the newest checkpoint, 0 without any."""
        return next((step for _, step in checkpoint_lists(Artifact(self.store, self.steps[label].directory))), 0)

    def logs(self, label: str) -> list[str]:
        """What the step's launches said, of those whose end the runtime has seen."""
        entries = sorted(self.store.list(f"{self.steps[label].directory}/logs"), key=lambda entry: entry.modified)
        return [self.store.get(entry.path).decode() for entry in entries if entry.path.endswith(".log")]

    def manifests(self) -> dict[str, bytes]:
        """The manifests that stand, by label: none of them may change again."""
        return {
            label: self.store.get(f"{step.directory}/manifest.json")
            for label, step in self.steps.items()
            if self.finished(label)
        }

    def receipts(self, label: str) -> dict[str, bytes]:
        directory = self.steps[label].directory
        return {name: self.store.get(f"{directory}/shards/{name}") for name in self.names(label, "shards")}

    def saved(self) -> Saved:
        """All that no later run may make again."""
        manifests = self.manifests()
        open_steps = [label for label in self.steps if label not in manifests]
        receipts = {label: self.receipts(label) for label in open_steps}
        checkpoints = {label: self.checkpoint(label) for label in open_steps}
        return Saved(
            manifests,
            {label: found for label, found in receipts.items() if found},
            {label: step for label, step in checkpoints.items() if step},
        )

    # Runs

    def command(self, *more: str) -> list[str | Path]:
        """medius run micro on this store."""
        settings = [part for setting in self.settings for part in ("--set", setting)]
        return [MEDIUS, "run", "micro", "--store", self.uri, *settings, *more]

    def start(self, name: str, *, command: Sequence[str | Path] | None = None, folder: str = "") -> Victim:
        """Begins a run; what it prints stands in <name>.txt."""
        return Victim(command or self.command(), self.folder / folder, name, self.variables, self.log_folder)

    def finish(self, victim: Victim, code: int = 0) -> str:
        """Waits for a run's end, which must have this exit code, and for that of all its processes; what it printed."""
        try:
            ended = victim.process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            victim.kill()
            raise AssertionError(f"not ended within {RUN_SECONDS} s:\n{victim.said()[-3000:]}") from None
        assert ended == code, f"exit code {ended}, not {code}:\n{victim.said()[-5000:]}"
        victim.require_nothing_left(time.monotonic())
        return victim.said()

    def run(self, name: str, code: int = 0) -> str:
        """A run from its beginning to its end; what it printed."""
        return self.finish(self.start(name), code)

    # Promises

    def committed(self) -> dict[str, Manifest]:
        """The manifest of each finished step, by label."""
        found = {label: Artifact(self.store, step.directory).manifest() for label, step in self.steps.items()}
        return {label: manifest for label, manifest in found.items() if manifest is not None}

    def require_promises(
        self, undisturbed: MicroRun, again: Mapping[str, int] | None = None, joined: Collection[str] = ()
    ) -> None:
        """The recipe is finished and is the undisturbed one to the bit; every byte is whole; nothing stayed behind.

        Args:
            again: launches of a step that may have been lost, by label; of the others none, so that nothing of them was
                made twice.
            joined: steps that two runs may have launched, to make shards of.
        """
        assert {label: manifest.digest for label, manifest in self.committed().items()} == undisturbed.digests()
        self.verify()
        self.require_made_once(again or {}, joined)
        left = processes_in(self.folder)
        assert not left, f"there still runs {left}"

    def verify(self) -> None:
        """Every committed object is whole, as `medius verify` looks at it."""
        for label, manifest in self.committed().items():
            damage = find_damage(Artifact(self.store, self.steps[label].directory), manifest)
            assert not damage, f"{label}: {damage}"

    def require_made_once(self, again: Mapping[str, int], joined: Collection[str] = ()) -> None:
        """No shard was begun twice beyond what a lost launch had in hands; no step was launched for nothing."""
        for label, step in self.steps.items():
            begun = Counter(name.rpartition("-")[0] for name in self.names(label, "data"))
            if label in joined:
                # Each launch that finds all shards finished sums them up; one summary stands.
                del begun["main"]
            twice = sum(times - 1 for times in begun.values())
            allowed = again.get(label, 0) * _HELD.get(step.stage.name, 1)
            assert twice <= allowed, f"{label}: {twice} shards were begun again, {allowed} may have been lost"
            # A launch is known by its log; that of a run which was killed is lost with it.
            launches = len(self.logs(label))
            assert launches <= 1 + again.get(label, 0) + (label in joined), f"{label} was launched {launches} times"

    def launched_again(self) -> int:
        """Launches of all steps beyond their first ones."""
        return sum(max(0, len(self.logs(label)) - 1) for label in self.steps)

    def require_kept(self, saved: Saved, lost: Collection[str] | None = None) -> None:
        """What stood then stands unchanged, and what was lost went on from there.

        Args:
            saved: what stood.
            lost: steps that lost a launch then; None: all, as no run was left.
        """
        manifests = self.manifests()
        assert manifests | saved.manifests == manifests, "a finished step was made again"
        for label, receipts in saved.receipts.items():
            now = self.receipts(label)
            assert now | receipts == now, f"a finished shard of {label} was made again"
        for label, step in saved.checkpoints.items():
            if lost is not None and label not in lost:
                continue
            logs = self.logs(label)
            resumed = [int(number) for log in logs for number in re.findall(r"goes on after step (\d+) of", log)]
            torn = any("the checkpoint after step" in log for log in logs)
            # Its last receipt may have come between the checkpoint and the fault: then only the commit was lost.
            whole = "main.json" in saved.receipts.get(label, {})
            assert whole or torn or max(resumed, default=0) >= step, f"{label} did not go on after step {step}"
