"""The training that distill and sft share: judge, train, checkpoint, judge again, export.

A stage brings the model's folder, the rows and the weights of the loss. Everything that differs between two launches of
one training is in the checkpoint; what is in none of them is a function of the step number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.training.batches import RowSource, StepLoader, StepOrder, collate, split_batches
from tasks.training.engine import DTYPES, DivergedError, DivergedMicroBatchError, StepResult, TrainingEngine, check_head
from tasks.training.losses import LossWeights
from tasks.training.processes import Processes
from tasks.training.settings import TrainingRecipe, TrainingRuntime
from tasks.worker.job import InputArtifact, Job

LOG_NAME = "training_log.jsonl"
MOST_ROW_IDS = 8
"""Row ids named in an error; the first of a large step say as much as all of them."""


def local_directory(entry: InputArtifact, processes: Processes) -> Path:
    """The input on this node's disk: one process a node fetches, the others wait for it."""
    if processes.local_rank == 0:
        entry.directory()
    processes.barrier()
    return entry.directory()


def vocabulary_of(model_directory: Path) -> tuple[str, int]:
    """The digest of a model's tokenizer and the number of its real tokens, which may be less than the model's rows."""
    tokenizer = load_tokenizer(model_directory)
    return tokenizer_digest(tokenizer), real_vocab_size(tokenizer)


@dataclass
class _State:
    """What a checkpoint holds besides weights, optimiser and random generators."""

    step: int
    heldout_start: dict[str, float]
    log: list[dict[str, float]]
    window: list[list[float]]
    """[loss, kd, ce, grad_norm] of the steps since the last line of the log."""
    tokens: int = 0
    targets: int = 0


class Training:
    """One launch of one training."""

    def __init__(
        self,
        job: Job,
        recipe: TrainingRecipe,
        runtime: TrainingRuntime,
        processes: Processes,
        *,
        model_directory: Path,
        num_real: int,
        train: RowSource,
        heldout: RowSource,
        weights: LossWeights,
        measures_kl: bool,
    ) -> None:
        """`measures_kl` says whether the rows carry a teacher; a KL to nothing would read as a perfect 0."""
        for name, rows in (("training", train), ("held-out", heldout)):
            if not len(rows):
                raise BadInputError(f"{job.spec.label}: the {name} split has no rows; give the corpus more documents")
        self._job = job
        self._recipe = recipe
        self._runtime = runtime
        self._processes = processes
        self._model_directory = model_directory
        self._heldout = heldout
        self._measures_kl = measures_kl
        self._num_steps = recipe.num_steps(len(train))
        self._seconds: dict[str, float] = {}
        self._last_report = 0.0
        with self._timed("load"):
            model = load_causal_lm(model_directory, dtype=DTYPES[recipe.precision])
            check_head(model, num_real)
            self._engine = TrainingEngine(
                model, num_real=num_real, weights=weights, recipe=recipe, runtime=runtime, processes=processes
            )
        self._loader = StepLoader(
            train,
            StepOrder(len(train), recipe.rows_per_step, recipe.seed),
            self._num_steps,
            runtime.micro_batch_rows,
            processes.rank,
            processes.world_size,
        )

    def run(self) -> None:
        """Trains from the newest checkpoint to the end and completes the artifact.

        Raises:
            PreemptedError: a stop was asked for; what was done is in a checkpoint.
            DivergedError: naming the rows and the last good step.
        """
        state = self._resume()
        if state is None:
            state = _State(step=0, heldout_start=self._judge(None), log=[], window=[])
        with self._timed("train"):
            tokens_before = state.tokens
            self._train(state)
        seconds = self._seconds["train"]
        heldout_end = self._judge(state)
        directory = self._job.scratch / "output"
        with self._timed("export"):
            self._export(directory, state)
        self._loader.close()
        if not self._processes.is_main:
            return
        metrics = {
            **{f"heldout_{name}_start": value for name, value in state.heldout_start.items()},
            **{f"heldout_{name}": value for name, value in heldout_end.items()},
            "train_loss": state.log[-1]["loss"],
            "steps": self._num_steps,
            "tokens": state.tokens,
            "target_tokens": state.targets,
            "tokens_per_second": (state.tokens - tokens_before) / seconds,
            "zero_stage": self._engine.zero_stage,
            "world_size": self._processes.world_size,
            **{f"seconds_{name}": value for name, value in self._seconds.items()},
        }
        self._job.complete(directory, metrics)
        self._job.checkpoints.clear()

    def _train(self, state: _State) -> None:
        start, tokens_before = time.monotonic(), state.tokens
        while state.step < self._num_steps:
            share = self._loader.load(state.step)
            rate = self._recipe.optimizer.rate(state.step, self._num_steps)
            try:
                result = self._engine.step(share.batches, share.num_targets, rate)
            except DivergedError as error:
                raise DivergedError(self._describe(error, state.step)) from error
            state.step += 1
            state.tokens += share.num_tokens
            state.targets += share.num_targets
            self._note(state, result, rate)
            done = state.step == self._num_steps
            stop = self._processes.any(self._job.stop_requested)
            if stop or (not done and state.step % self._runtime.checkpoint_every_steps == 0):
                self._save(state)
            if stop:
                self._job.preempted()
            tokens_per_second = (state.tokens - tokens_before) / (time.monotonic() - start)
            self._report(state.step, self._num_steps, "steps", done=done, tokens_per_second=tokens_per_second)

    def _note(self, state: _State, result: StepResult, rate: float) -> None:
        state.window.append([result.loss, result.kd, result.ce, result.grad_norm])
        self._job.metric(step=state.step, loss=result.loss, kd=result.kd, ce=result.ce, lr=rate)
        if state.step % self._recipe.log_every_steps and state.step != self._num_steps:
            return
        loss, kd, ce, norm = (sum(column) / len(column) for column in zip(*state.window, strict=True))
        state.log.append({"step": state.step, "loss": loss, "kd": kd, "ce": ce, "grad_norm": norm, "lr": rate})
        state.window.clear()

    def _describe(self, error: DivergedError, step: int) -> str:
        if isinstance(error, DivergedMicroBatchError):
            row_ids = self._loader.row_ids(step, error.index)
        else:
            groups = range(self._recipe.rows_per_step // self._runtime.micro_batch_rows)
            row_ids = [row_id for group in groups for row_id in self._loader.row_ids(step, group)]
        more = f" and {len(row_ids) - MOST_ROW_IDS} more" if len(row_ids) > MOST_ROW_IDS else ""
        return (
            f"{error} in step {step + 1} on the rows {', '.join(row_ids[:MOST_ROW_IDS])}{more}; the last good step is "
            f"{step}; lower optimizer.learning_rate or look at these rows"
        )

    def _judge(self, state: _State | None) -> dict[str, float]:
        """Mean KL and CE a target over the held-out split. A stop on the way saves `state`, if there is one."""
        with self._timed("evaluate"):
            groups = split_batches(
                self._heldout, self._runtime.micro_batch_rows, self._processes.rank, self._processes.world_size
            )
            sums_3 = torch.zeros(3, dtype=torch.float64)
            for index, group in enumerate(groups):
                batch = collate([self._heldout[row] for row in group or [0]])
                sums_3 += self._engine.judge(batch if group else batch.without_targets())
                self._report(index + 1, len(groups), "held-out batches", done=index + 1 == len(groups))
                if self._processes.any(self._job.stop_requested):
                    if state is not None:
                        self._save(state)
                    self._job.preempted()
            kl, ce, count = self._processes.sum(sums_3).tolist()
        if not count:
            raise BadInputError(f"{self._job.spec.label}: the held-out split has no target token")
        return {**({"kl": kl / count} if self._measures_kl else {}), "ce": ce / count}

    # Checkpoints

    def _save(self, state: _State) -> None:
        directory = self._job.scratch / f"checkpoint-{state.step}"
        self._engine.save(directory)
        if self._processes.is_main:
            stamp = {**vars(state), **self._shape()}
            self._job.checkpoints.save(state.step, directory, stamp, self._runtime.keep_checkpoints)
            for file in directory.rglob("*"):
                if file.is_file():
                    file.unlink()
            self._job.log(f"saved a checkpoint after step {state.step} of {self._num_steps}")
        self._processes.barrier()

    def _resume(self) -> _State | None:
        newest = self._job.checkpoints.latest(self._job.scratch / "resume") if self._processes.is_main else None
        newest = self._processes.from_main(newest)
        if newest is None:
            return None
        stamp = dict(newest.state)
        shape = self._shape()
        written = {name: stamp.pop(name) for name in shape}
        if written != shape:
            raise BadInputError(
                f"{self._job.artifact.uri}: the checkpoint after step {stamp['step']} was written with {written}, this "
                f"run has {shape}; run it as before, or delete the folder checkpoints/ to start from the beginning"
            )
        self._engine.load(newest.directory)
        self._job.log(f"goes on after step {stamp['step']} of {self._num_steps}")
        return _State(**stamp)

    def _shape(self) -> dict[str, int]:
        """What a checkpoint's files depend on: they are cut by process and by ZeRO stage."""
        return {"world_size": self._processes.world_size, "zero_stage": self._engine.zero_stage}

    def _export(self, directory: Path, state: _State) -> None:
        """Writes the weights into a fresh copy of the starting model, so that config and padding rows are its own."""
        dtype = DTYPES[self._recipe.precision]
        model = load_causal_lm(self._model_directory, dtype=dtype) if self._processes.is_main else None
        target = dict(model.named_parameters()) if model is not None else {}
        with torch.no_grad():
            for name, parameter in self._engine.parameters():
                if model is not None:
                    target.pop(name).copy_(parameter)
        assert not target, sorted(target)
        if model is None:
            return
        save_causal_lm(model, directory)
        copy_tokenizer_files(self._model_directory, directory)
        lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in state.log)
        (directory / LOG_NAME).write_text(lines, encoding="utf-8")

    # What others see

    def _report(self, done_units: int, total: int, unit: str, *, done: bool, **values: Any) -> None:
        now = time.monotonic()
        if done or now - self._last_report >= 1:
            self._last_report = now
            self._job.progress(done_units, total, unit, **values)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start
