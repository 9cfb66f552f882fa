"""Whether the disks of this machine take what a run is forecast to need there, looked at before anything is computed.

Counted is what this process's own stages need at one time, in the order of `medius plan --cost`:

    scratch folder     results, shards and checkpoints on their way into the store
    inputs from S3     stay on this machine once they are fetched; logits are not, as trainings read them row by row
    a local store      results, and the checkpoints of trainings at work; inputs are links there

Not counted are models in the hub's own cache, and a copy of the published one in another folder. A stage on another
work pool is the affair of its own run there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.costs import DONE, CostOptions, RunCost, StepCost, cost_of
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.dump_logits.served import ServedTeacher
from tasks.planning.quantities import byte_size
from tasks.runtime.declare import Step
from tasks.worker.input_cache import INPUTS, input_folder

READS_OBJECTS = {"corpus", "clean", "import_logits"}
"""Stages that read single objects of their inputs."""
READ_IN_PLACE = {"dump_logits", "import_logits", "evaluate"}
"""Stages whose artifacts are not fetched as a whole."""


def require_room(
    steps: Sequence[Step], here: Sequence[Step], store: Store, parallel_stages: int, scratch: Path
) -> None:
    """Compares free space with what is forecast of the steps in `here`.

    Args:
        steps: all of the recipe, of which the sizes of the inputs follow.
        here: those that this process makes.
        parallel_stages: that many work at one time, at most.

    Raises:
        BadInputError: a disk is too small.
    """
    try:
        if all(store.exists(f"{step.directory}/manifest.json") for step in here):
            # Nothing is to be made; a forecast reads each of these again for every stage that needs it.
            return
        cost = cost_of(steps, store, parallel_stages, CostOptions.read())
        disks = _disks(cost, {step.key for step in here}, store, scratch)
    except Exception as error:
        # A forecast informs: that a shape is not known yet is no reason not to run.
        logging.getLogger(__name__).info("free space was not compared with a forecast: %s", error)
        return
    for disk in disks:
        needed, free = cost.schedule.most(disk.passing, disk.kept), shutil.disk_usage(disk.folder).free
        if needed > free:
            other = "choose another store with --store" if disk.has_store else "name another disk in MEDIUS_INPUT_CACHE"
            raise BadInputError(
                f"this run is forecast to need {byte_size(needed)} at one time on the disk of {disk.folder}, which has "
                f'{byte_size(free)} free; make room there ("medius gc --delete" removes what nothing needs, inputs '
                f"fetched to this host among it), {other}, or start it in a folder of a larger disk "
                f'("medius plan PROFILE --cost" shows the sizes); --set require_room=false runs it all the same'
            )


@dataclass
class _Disk:
    """Bytes by the stage that needs them."""

    folder: Path
    has_store: bool = False
    passing: dict[str, float] = field(default_factory=dict)
    """While the stage runs."""
    kept: dict[str, float] = field(default_factory=dict)
    """From then on."""


@dataclass
class _Disks:
    """The disks that a run needs, by their number."""

    found: dict[int, _Disk] = field(default_factory=dict)

    def add(self, folder: Path, label: str, *, passing: float = 0, kept: float = 0, has_store: bool = False) -> None:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disk = self.found.setdefault(there.stat().st_dev, _Disk(there))
        if has_store and not disk.has_store:
            # A disk that holds several of them is named by the store, which is what a user chooses.
            disk.folder, disk.has_store = there, True
        disk.passing[label] = disk.passing.get(label, 0.0) + passing
        disk.kept[label] = disk.kept.get(label, 0.0) + kept


def _disks(cost: RunCost, here: set[str], store: Store, scratch: Path) -> list[_Disk]:
    disks = _Disks()
    steps = {step.state.step.key: step for step in cost.steps}
    mine = [step for key, step in steps.items() if key in here and step.state.state not in DONE]
    root = store.local_path("artifacts")
    fetched: set[str] = set()
    for step in sorted(mine, key=lambda step: cost.schedule.start[step.label]):
        disks.add(scratch, step.label, passing=step.left.scratch)
        if root is not None:
            stored, checkpoints = step.left.stored, step.left.checkpoints
            disks.add(root.parent, step.label, passing=checkpoints, kept=stored, has_store=True)
            continue
        for key in _fetched(step.state.step):
            if key not in fetched:
                fetched.add(key)
                folder, missing = _missing(steps[key], scratch)
                disks.add(folder, step.label, kept=missing)
    return list(disks.found.values())


def _fetched(step: Step) -> Iterator[str]:
    """Keys of the inputs that the step fetches as a whole."""
    served = isinstance(getattr(step.config.recipe, "teacher", None), ServedTeacher)
    for role, source in step.inputs.items():
        described = served and role == "teacher"
        if step.stage.name not in READS_OBJECTS and source.stage.name not in READ_IN_PLACE and not described:
            yield source.key


def _missing(source: StepCost, scratch: Path) -> tuple[Path, float]:
    """Where an input from S3 is kept, and the bytes of it that are not there yet."""
    manifest = source.state.manifest
    digest = manifest.digest if manifest is not None else ""
    folder = input_folder(str(scratch / INPUTS), source.state.step.key, digest)
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return folder, max(0.0, source.whole.stored - there)
