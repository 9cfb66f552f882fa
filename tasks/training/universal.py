"""DeepSpeed's universal checkpoints: an engine's state by parameter, whatever the world size and the ZeRO stage.

    <checkpoint>/universal/zero/<parameter>/{fp32,exp_avg,exp_avg_sq}.pt
    <checkpoint>/steps.json                         how often each parameter group has learnt

The files are those of `deepspeed.checkpoint.ds_to_universal`. They are read by this module through DeepSpeed's own
access to parameters, since its reader (0.19.8) gives every group the weight decay and the step count of the first one
under ZeRO-3, and does not read from one stage into another.
"""

from __future__ import annotations

import contextlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasks.artifacts.errors import CorruptArtifactError
from tasks.training.pickles import refuse_foreign_pickles

if TYPE_CHECKING:
    from tasks.training.engine import TrainingEngine

FOLDER = "universal"
STEPS = "steps.json"
MASTER = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")


def convert(directory: Path, state: str) -> None:
    """Cuts the DeepSpeed files below `directory / state` anew, by parameter. Needs as much space again, twice.

    One process does it for all.

    Raises:
        CorruptArtifactError: DeepSpeed cannot convert them, or they hold what no training writes.
    """
    refuse_foreign_pickles(directory)
    if (directory / FOLDER).is_dir():
        return
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(directory / state),
        output_folder=str(directory / FOLDER),
        # In this process: a fork of one that holds a process group and a device is not to be trusted.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            ds_to_universal.main(settings)
    except Exception as error:
        raise CorruptArtifactError(
            f"DeepSpeed cannot convert the checkpoint in {directory} ({type(error).__name__}: {error}); run with as "
            f"many processes and the ZeRO stage that it was written with, or delete the folder checkpoints/"
        ) from error


class UniversalState:
    """Weights and optimiser state of one engine, by parameter."""

    def __init__(self, training: TrainingEngine) -> None:
        self._training = training
        self._engine = training.engine

    def write(self, directory: Path) -> None:
        """ZeRO 0 only: every process has everything, so the main one writes it."""
        if self._engine.global_rank:
            return
        for name, _, master in self._whole():
            folder = directory / FOLDER / "zero" / name
            folder.mkdir(parents=True)
            state = self._engine.basic_optimizer.state[master]
            for key, value in {MASTER: master, **{key: state[key] for key in MOMENTS}}.items():
                torch.save({"param": value.detach().cpu()}, folder / f"{key}.pt")

    def write_steps(self, directory: Path) -> None:
        """How often each group of parameters has learnt."""
        steps = {
            group["role"]: float(self._engine.basic_optimizer.state[master]["step"])
            for group, master in self._training.masters()
        }
        (directory / STEPS).write_text(json.dumps(steps))

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Sets this process's part of every parameter, its moments and its step count."""
        folder = directory / FOLDER / "zero"
        match self._training.zero_stage:
            case 0:
                self._load_whole(folder)
            case 3:
                self._load_partitions(folder)
            case _:
                self._load_fragments(folder)
        steps = json.loads((directory / STEPS).read_text())
        for group, master in self._training.masters():
            self._engine.basic_optimizer.state[master]["step"].fill_(steps[group["role"]])

    def _load_whole(self, folder: Path) -> None:
        for name, parameter, master in self._whole():
            state = self._engine.basic_optimizer.state[master]
            master.copy_(_read(folder, name, MASTER).view_as(master))
            parameter.copy_(master)
            for key in MOMENTS:
                state[key].copy_(_read(folder, name, key).view_as(master))

    def _load_fragments(self, folder: Path) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self._named():
            safe_set_full_fp32_param(parameter, _read(folder, name, MASTER))
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, _read(folder, name, key), key)
        self._engine.optimizer.update_lp_params()

    def _load_partitions(self, folder: Path) -> None:
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param, safe_set_local_optimizer_state

        optimizer = self._engine.optimizer
        optimizer.checkpoint_event_prologue()
        rank = self._engine.global_rank
        for name, parameter in self._named():
            length = safe_get_local_fp32_param(parameter).numel()
            for key in (MASTER, *MOMENTS):
                # The last partition is padded; DeepSpeed's own setter of whole values would reach past the end.
                whole = _read(folder, name, key).flatten()
                part = torch.zeros(length)
                real = whole[rank * length : (rank + 1) * length]
                part[: len(real)] = real
                if key == MASTER:
                    safe_set_local_fp32_param(parameter, part)
                else:
                    safe_set_local_optimizer_state(parameter, part, key)
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What learns; a tied or shared parameter once, by the name that DeepSpeed gives it."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _whole(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """ZeRO 0: each parameter with its float32 master, which is the parameter itself in a float32 training."""
        names = {parameter: name for name, parameter in self._named()}
        optimizer = self._engine.optimizer
        parameters = getattr(optimizer, "fp16_groups", None) or [g["params"] for g in optimizer.param_groups]
        for group, masters in zip(parameters, self._engine.basic_optimizer.param_groups, strict=True):
            for parameter, master in zip(group, masters["params"], strict=True):
                yield names[parameter], parameter, master


def _read(folder: Path, name: str, key: str) -> Tensor:
    # Mapped: a process touches only the pages of its part.
    found: Any = torch.load(folder / name / f"{key}.pt", weights_only=True, mmap=True)
    value: Tensor = found["param"] if isinstance(found, dict) else found
    return value
