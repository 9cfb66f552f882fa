"""Whether the disks of this machine take what a run is forecast to write, looked at before anything is computed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from flows.costs import CostOptions, cost_of
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.planning.quantities import byte_size
from tasks.runtime.declare import Step


def require_room(steps: Sequence[Step], store: Store, parallel_stages: int, scratch: Path) -> None:
    """Compares free space with what is still to be written; what is not forecast, as checkpoints, is left out.

    Args:
        parallel_stages: that many results stand in the scratch folder at one time, before they go to the store.

    Raises:
        BadInputError: a disk is too small.
    """
    try:
        forecast = [cost.left.stored for cost in cost_of(steps, store, parallel_stages, CostOptions.read()).steps]
    except Exception as error:
        # A forecast informs: that a shape is not known yet is no reason not to run.
        logging.getLogger(__name__).info("free space was not compared with a forecast: %s", error)
        return
    needed: dict[int, float] = {}
    folders: dict[int, Path] = {}
    root = store.local_path("artifacts")
    in_scratch = sum(sorted(forecast)[-parallel_stages:])
    for folder, size in ((scratch, in_scratch), *([] if root is None else [(root.parent, sum(forecast))])):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disk = there.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        # A disk that holds both is named by the store, which is what a user chooses.
        folders[disk] = there
    for disk, folder in folders.items():
        free = shutil.disk_usage(folder).free
        if needed[disk] > free:
            raise BadInputError(
                f"this run is forecast to write {byte_size(needed[disk])} on the disk of {folder}, which has "
                f"{byte_size(free)} free; make room there, choose another store with --store, or start it in a folder "
                f'of a larger disk ("medius plan PROFILE --cost" shows the sizes)'
            )
