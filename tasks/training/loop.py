"""The training that distill and sft share: judge, train, checkpoint, judge again, export.

A stage brings the model's folder, the rows and the weights of the loss. Everything that differs between two launches of
one training is in the checkpoint; what is in none of them is a function of the step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError, StoreError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.planning.flops import causal_pairs
from tasks.training.batches import check_packing, check_rope
from tasks.training.checkpoints import TrainingCheckpoints
from tasks.training.divergence import lines_of, named, worst_first
from tasks.training.engine import DTYPES, DivergedError, StepResult, TrainingEngine
from tasks.training.guard import SpikeGuard
from tasks.training.head import head_form
from tasks.training.heldout import DivergedHeldoutError, HeldoutSplit
from tasks.training.loader import StepLoader
from tasks.training.losses import PARTS, LossWeights
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.performance import StepWork, throughput_of
from tasks.training.processes import Processes
from tasks.training.record import LOG_NAME, TrainingRecord
from tasks.training.rows import MixedRows, RowSource
from tasks.training.settings import TrainingRecipe, TrainingRuntime
from tasks.worker.job import InputArtifact, Job


def local_directory(entry: InputArtifact, processes: Processes) -> Path:
    """The input on this node's disk: one process a node fetches, the others wait for it."""
    processes.each(entry.directory if processes.local_rank == 0 else None)
    return entry.directory()


def vocabulary_of(model_directory: Path) -> tuple[str, int]:
    """The digest of a model's tokenizer and the number of its real tokens, which may be less than the model's rows."""
    tokenizer = load_tokenizer(model_directory)
    return tokenizer_digest(tokenizer), real_vocab_size(tokenizer)


@dataclass
class _State:
    """Counters of the training; all that a checkpoint holds but the states of engine, record and guard."""

    step: int
    heldout_start: dict[str, float]
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
        mixture: Mapping[str, float] | None = None,
        epoch_rows: int | None = None,
    ) -> None:
        """`measures_kl` says whether the rows carry a teacher; a KL to nothing would read as a perfect 0.

        `mixture`: weights of the sources of `train`, which then is `MixedRows`. `epoch_rows`: what the recipe's epochs
        count; as many rows as all sources have together where not given.
        """
        for name, rows in (("training", train), ("held-out", heldout)):
            if not len(rows):
                raise BadInputError(f"{job.spec.label}: the {name} split has no rows; give the corpus more documents")
        self._job = job
        self._recipe = recipe
        self._runtime = runtime
        self._processes = processes
        self._model_directory = model_directory
        self._num_real = num_real
        self._train_rows = train
        self._measures_kl = measures_kl
        self._seconds: dict[str, float] = {}
        sizes = train.sizes if isinstance(train, MixedRows) else len(train)
        self._order = StepOrder(sizes, recipe.rows_per_step, recipe.seed, mixture)
        try:
            self._num_steps = recipe.num_steps(epoch_rows or self._order.num_rows)
        except ValueError as error:
            raise BadInputError(f"{job.spec.label}: {error}") from error
        packing = Packing(runtime.micro_batch_tokens, runtime.pack_tokens)
        self._loader = StepLoader(train, self._order, self._num_steps, packing, processes.rank, processes.world_size)
        self._heldout = HeldoutSplit(heldout, packing, processes)
        with self._timed("load"):
            dtype = DTYPES[recipe.precision]
            # Its weights may still be on the hub.
            model = processes.each(partial(load_causal_lm, model_directory, dtype=dtype))
            assert model is not None
            check_packing(model)
            check_rope(model, packing.longest(train, heldout))
            self._engine = TrainingEngine(
                model,
                form=head_form(model, num_real),
                weights=weights,
                recipe=recipe,
                runtime=runtime,
                processes=processes,
            )
        self._checkpoints = TrainingCheckpoints(job, self._engine, processes, runtime)
        self._guard = SpikeGuard(runtime.spike_factor, norm_floor=recipe.optimizer.max_grad_norm)
        self._record = TrainingRecord(
            job,
            parts=[name for name in PARTS if getattr(weights, name)],
            num_steps=self._num_steps,
            log_every_steps=recipe.log_every_steps,
            throughput=throughput_of(
                model.config.to_dict(),
                device=processes.device,
                dtype=dtype,
                world_size=processes.world_size,
                hardware=runtime.hardware,
                say=job.log,
            ),
        )

    def run(self) -> None:
        """Trains from the newest checkpoint to the end and completes the artifact.

        Raises:
            PreemptedError: a stop was asked for; what was done is in a checkpoint.
            DivergedError: naming the rows, the step and the newest checkpoint.
        """
        try:
            directory, metrics = self._trained()
            # Completing may fail for now; then this checkpoint is what the next launch completes.
            self._checkpoints.settle()
        finally:
            # However it ends: curves are wanted most of what went wrong.
            self._record.close()
            self._loader.close()
            self._checkpoints.close()
        self._processes.each(partial(self._job.complete, directory, metrics) if self._processes.is_main else None)
        self._checkpoints.clear()

    def _trained(self) -> tuple[Path, dict[str, Any]]:
        """The folder with the finished model, and what is said of it."""
        state = self._resume()
        if state is None:
            state = _State(step=0, heldout_start=self._judge(None))
            self._record.heldout(0, state.heldout_start)
        with self._timed("train"):
            self._train(state)
        heldout_end = self._judge(state)
        self._record.heldout(self._num_steps, heldout_end)
        directory = self._job.scratch / "output"
        with self._timed("export"):
            self._export(directory)
        return directory, self._metrics(state, heldout_end)

    def _train(self, state: _State) -> None:
        self._loader.prepare(state.step)
        # A stop in the middle of a judgement saved before there was a result.
        self._judge_if_due(state)
        while state.step < self._num_steps:
            started = time.perf_counter()
            share = self._loader.load(state.step)
            rate = self._recipe.optimizer.rate(state.step, self._num_steps, self._recipe.embedding_steps)
            learning = self._recipe.learning(state.step)
            if state.step == self._recipe.embedding_steps:
                self._guard.forget_norms()
            try:
                result = self._engine.step(
                    share.batches,
                    share.num_targets,
                    rate,
                    learning=learning,
                    check_loss=self._guard.check_loss,
                )
                self._guard.check_norm(result.grad_norm)
            except DivergedError as error:
                # Of the two, a divergence is what must be told: it would be met again.
                with suppress(StoreError):
                    self._checkpoints.wait()
                raise DivergedError(self._describe(error, state.step)) from error
            state.step += 1
            state.tokens += share.num_tokens
            state.targets += share.num_targets
            work = StepWork(
                num_tokens=share.num_tokens,
                num_targets=share.num_targets,
                num_padded=share.num_padded,
                num_pairs=causal_pairs([self._train_rows.num_tokens(row) for row in self._order.rows(state.step - 1)]),
                seconds=time.perf_counter() - started,
                wait_seconds=share.wait_seconds,
                learning=learning,
                num_taught=share.num_taught,
            )
            self._after_step(state, result, rate, work)

    def _after_step(self, state: _State, result: StepResult, rate: float, work: StepWork) -> None:
        """Notes a finished step, judges and saves where it is time, and leaves where that was asked for."""
        self._guard.note(result.loss, result.grad_norm)
        self._record.step(state.step, result, rate, work)
        self._judge_if_due(state)
        stop = self._processes.any(self._job.stop_requested)
        # The last step's, too: judging and exporting what is learnt may take long, and fail.
        if stop or state.step == self._num_steps or state.step % self._runtime.checkpoint_every_steps == 0:
            self._save(state)
        if stop:
            self._leave()

    def _judge_if_due(self, state: _State) -> None:
        every = self._recipe.heldout_every_steps
        if every is None or not 0 < state.step < self._num_steps or state.step % every:
            return
        if not self._record.log.is_judged(state.step):
            self._record.heldout(state.step, self._judge(state))

    def _describe(self, error: DivergedError, step: int) -> str:
        passes = worst_first(self._loader.passes(step), self._engine.group_losses)
        place = self._record.diverged(lines_of(passes))
        broken = [one for loss, one in passes if not math.isfinite(loss)] or [one for _, one in passes]
        row_ids = [row_id for one in broken for row_id in one.row_ids]
        return (
            f"{error} in step {step + 1} on the rows {named(row_ids)}, by the loss of their pass; the last good step "
            f"is {step}, {self._kept()}; lower optimizer.learning_rate or look at these rows ({place} has all of them)"
        )

    def _kept(self) -> str:
        last = self._checkpoints.last_step
        return "no checkpoint was written yet" if last is None else f"the newest checkpoint is after step {last}"

    def _judge(self, state: _State | None) -> dict[str, float]:
        """Mean KL and CE a target over the held-out split. A stop on the way saves `state`, if there is one."""

        def after_pass(done: int, total: int) -> None:
            self._job.progress_each_second(done, total, "held-out batches")
            if self._processes.any(self._job.stop_requested):
                # After the last step it is saved already.
                if state is not None and state.step < self._num_steps:
                    self._save(state)
                self._leave()

        with self._timed("evaluate"):
            try:
                kl, ce, count = self._heldout.judge(self._engine, after_pass)
            except DivergedHeldoutError as error:
                raise DivergedError(self._describe_heldout(error, 0 if state is None else state.step)) from error
        if not count:
            raise BadInputError(f"{self._job.spec.label}: the held-out split has no target token")
        return {**({"kl": kl / count} if self._measures_kl else {}), "ce": ce / count}

    def _describe_heldout(self, error: DivergedHeldoutError, step: int) -> str:
        told = f"{error} {f'after step {step}' if step else 'before the first step'} on the rows {named(error.row_ids)}"
        if not step:
            return (
                f"{told}; a token of theirs may have a broken row in the starting model's embedding: make that model "
                f"anew, or take these rows out of the corpus"
            )
        with suppress(StoreError):
            self._checkpoints.wait()
        return f"{told}; {self._kept()}; lower optimizer.learning_rate or look at these rows"

    # Checkpoints

    def _save(self, state: _State) -> None:
        stamp = {**vars(state), "record": self._record.state(), "guard": self._guard.state()}
        self._checkpoints.save(state.step, stamp)
        self._record.upload()

    def _leave(self) -> None:
        self._checkpoints.wait()
        self._job.preempted()

    def _resume(self) -> _State | None:
        stamp = self._checkpoints.resume()
        if stamp is None:
            return None
        self._record.restore(stamp.pop("record"))
        self._guard.restore(stamp.pop("guard"))
        state = _State(**stamp)
        self._job.log(f"goes on after step {state.step} of {self._num_steps}")
        return state

    # What it leaves behind

    def _export(self, directory: Path) -> None:
        """Writes the weights into a fresh copy of the starting model, so that config and padding rows are its own.

        No loss reaches the padding rows of embedding and head, but weight decay does.
        """
        dtype = DTYPES[self._recipe.precision]
        load = partial(load_causal_lm, self._model_directory, dtype=dtype)
        model = self._processes.each(load if self._processes.is_main else None)
        target = dict(model.named_parameters()) if model is not None else {}
        ends = [] if model is None else [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        with torch.no_grad():
            for name, parameter in self._engine.parameters():
                if model is not None:
                    kept = target.pop(name)
                    rows = slice(self._num_real if any(kept is end for end in ends) else None)
                    kept[rows].copy_(parameter[rows])
        assert not target, sorted(target)
        self._processes.each(None if model is None else partial(self._write, model, directory))

    def _write(self, model: PreTrainedModel, directory: Path) -> None:
        save_causal_lm(model, directory)
        copy_tokenizer_files(self._model_directory, directory)
        (directory / LOG_NAME).write_text(self._record.log.text(), encoding="utf-8")

    def _metrics(self, state: _State, heldout_end: dict[str, float]) -> dict[str, Any]:
        return {
            **{f"heldout_{name}_start": value for name, value in state.heldout_start.items()},
            **{f"heldout_{name}": value for name, value in heldout_end.items()},
            "train_loss": next(line["loss"] for line in reversed(self._record.log.lines) if "loss" in line),
            "steps": self._num_steps,
            "tokens": state.tokens,
            "target_tokens": state.targets,
            **self._record.throughput.total(),
            "zero_stage": self._engine.zero_stage,
            "world_size": self._processes.world_size,
            **{f"seconds_{name}": value for name, value in self._seconds.items()},
        }

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start
