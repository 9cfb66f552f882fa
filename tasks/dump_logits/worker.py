"""Runs a teacher over a corpus and writes a logit store, shard by shard.

The plan of shards is a function of the corpus and the recipe. Shards that have a receipt are not computed again; with
several processes each takes every n-th shard of the plan and the first one finishes the artifact.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from zarr.storage import LocalStore

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import ShardReceipt
from tasks.dump_logits.batches import length_buckets, padded
from tasks.dump_logits.head import distributions
from tasks.dump_logits.measures import shard_statistics, store_metrics
from tasks.dump_logits.stage import DumpLogitsRecipe, DumpLogitsRuntime
from tasks.dump_logits.teacher import Teacher, check_config
from tasks.logits.codec import Positions
from tasks.logits.reader import DEFAULT_CACHE_BYTES, BlockCache, ShardReader
from tasks.logits.rows import Row, read_rows
from tasks.logits.schema import SCHEMA_FILE, LogitFormat, LogitSchema, ShardEntry, ShardPlan, Split, plan_shards
from tasks.logits.writer import write_shard
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    recipe = DumpLogitsRecipe.model_validate(job.recipe)
    runtime = DumpLogitsRuntime.model_validate(job.runtime)
    torch.set_num_threads(runtime.threads)
    teacher_directory = job.input("teacher").directory()
    form = _format(job, recipe, teacher_directory)
    corpus = job.input("corpus").directory()
    rows: dict[Split, list[Row]] = {
        split: _rows(corpus / f"{split}.parquet", form.vocab_size) for split in recipe.splits
    }
    plan = plan_shards({split: len(rows[split]) for split in rows}, recipe.rows_per_shard)
    if not plan:
        raise BadInputError(f"the corpus has no rows in {', '.join(recipe.splits)}; there is nothing to dump")

    receipts = job.receipts()
    mine = plan[job.rank :: int(os.environ.get("WORLD_SIZE", "1"))]
    to_do = [shard for shard in mine if shard.name not in receipts]
    if to_do:
        shard_rows = [_rows_of(shard, rows) for shard in to_do]
        every_row = [row for part in shard_rows for row in part]
        check_config(teacher_directory, recipe.teacher, form.vocab_size, every_row)
        teacher = Teacher(teacher_directory, recipe.teacher, _device(runtime), form.vocab_size)
        teacher.check_formula(shard_rows[0][0].input_ids)
        num_tokens = sum(len(row.input_ids) for shard in mine for row in _rows_of(shard, rows))
        num_left = sum(len(row.input_ids) for row in every_row)
        dump = Dump(job, runtime, form, teacher, num_tokens, num_tokens - num_left)
        for shard, part in zip(to_do, shard_rows, strict=True):
            dump.shard(shard, part)
    if job.rank == 0:
        _complete(job, recipe, form, {split: len(rows[split]) for split in rows}, plan)


class Dump:
    """The loop over shards with what it needs."""

    def __init__(
        self,
        job: Job,
        runtime: DumpLogitsRuntime,
        form: LogitFormat,
        teacher: Teacher,
        num_tokens: int,
        tokens_before: int,
    ) -> None:
        self.job = job
        self.runtime = runtime
        self.form = form
        self.teacher = teacher
        self.num_tokens = num_tokens
        self.tokens_before = self.tokens_done = tokens_before
        self.started = self.told = time.monotonic()

    def shard(self, plan: ShardPlan, rows: Sequence[Row]) -> None:
        """Computes one shard, checks a sample of what was written, and commits it."""
        tokens_after = self.tokens_done + sum(len(row.input_ids) for row in rows)
        positions = self.positions(rows)
        directory = self.job.new_directory(plan.name)
        write_shard(directory, plan, self.form, rows, positions)
        statistics = shard_statistics(rows, positions, self.gold_error(directory))
        self.job.commit_shard(plan.name, directory, statistics)
        shutil.rmtree(directory)
        # Rows of one token are in no batch.
        self._tell(tokens_after - self.tokens_done, at_once=True)

    @torch.inference_mode()
    def positions(self, rows: Sequence[Row]) -> Positions:
        """The truncated distributions of all rows, in row order whatever the batches were."""
        starts_N = np.cumsum([0] + [len(row.input_ids) - 1 for row in rows])
        result = Positions.empty(int(starts_N[-1]), self.form.num_kept, len(self.form.temperatures))
        for batch in length_buckets([len(row.input_ids) for row in rows], self.runtime.tokens_per_batch):
            if self.job.stop_requested:
                self.job.preempted()
            self._batch([rows[index] for index in batch], starts_N[batch], result)
            self._tell(sum(len(rows[index].input_ids) for index in batch))
        return result

    def _batch(self, rows: Sequence[Row], starts_B: np.ndarray, result: Positions) -> None:
        device = self.teacher.device
        ids_BT, mask_BT = padded([row.input_ids for row in rows], device)
        hidden_BTD = self.teacher.hidden_states(ids_BT, mask_BT)
        # Position t predicts token t + 1: a row's last token has hidden states but nothing to predict.
        predicts_BT = mask_BT[:, 1:].bool()
        hidden_PD = hidden_BTD[:, :-1][predicts_BT]
        gold_P = ids_BT[:, 1:][predicts_BT]
        if not (finite_P := hidden_PD.isfinite().all(1)).all():
            self._refuse(rows, int(finite_P.int().argmin()))
        where_P = np.concatenate(
            [np.arange(len(row.input_ids) - 1) + start for row, start in zip(rows, starts_B, strict=True)]
        )
        for first in range(0, len(hidden_PD), self.runtime.head_chunk_tokens):
            chunk = slice(first, first + self.runtime.head_chunk_tokens)
            part = distributions(
                self.teacher.logits(hidden_PD[chunk]), gold_P[chunk], self.form.num_kept, self.form.temperatures
            )
            if not (finite_C := np.isfinite(part.topk_logprobs_PK[:, 0])).all():
                self._refuse(rows, first + int(finite_C.argmin()))
            for target, values in zip(result.arrays(), part.arrays(), strict=True):
                target[where_P[chunk]] = values

    def _refuse(self, rows: Sequence[Row], position: int) -> NoReturn:
        ends = np.cumsum([len(row.input_ids) - 1 for row in rows])
        index = int(np.searchsorted(ends, position, side="right"))
        raise BadInputError(
            f"the teacher's output is not finite on row {rows[index].row_id}; check its weights "
            f"and recipe.teacher (dtype, attention, quantisation), or leave this document out of the corpus"
        )

    def gold_error(self, directory: Path) -> float:
        """Largest difference in nats between what a written shard says of sampled rows and a second computation."""
        shard = ShardReader(LocalStore(directory, read_only=True), BlockCache(DEFAULT_CACHE_BYTES))
        candidates = np.flatnonzero(np.diff(shard.offsets) > 1)
        places = np.linspace(0, len(candidates) - 1, min(self.runtime.gold_rows_per_shard, len(candidates))).astype(int)
        error = 0.0
        for index in candidates[places]:
            row = shard.row(int(index))
            where, expected = self.teacher.plain_gold_logprobs(row.input_ids)
            error = max(error, float(np.abs(row.gold_logprob_P[where].astype(np.float64) - expected).max()))
        return error

    def _tell(self, tokens: int, *, at_once: bool = False) -> None:
        self.tokens_done += tokens
        now = time.monotonic()
        if at_once or now - self.told >= 1:
            self.told = now
            rate = (self.tokens_done - self.tokens_before) / max(now - self.started, 1e-9)
            self.job.progress(self.tokens_done, self.num_tokens, "tokens", tokens_per_second=rate)


def _device(runtime: DumpLogitsRuntime) -> torch.device:
    if runtime.device == "cpu" or (runtime.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _format(job: Job, recipe: DumpLogitsRecipe, teacher_directory: Path) -> LogitFormat:
    tokenizer = load_tokenizer(teacher_directory)
    digest, vocab_size = tokenizer_digest(tokenizer), real_vocab_size(tokenizer)
    corpus_digest = job.input("corpus").json("corpus.json")["tokenizer_digest"]
    if corpus_digest != digest:
        raise BadInputError(
            f"the corpus was tokenized with {corpus_digest[:16]}, the teacher's tokenizer is {digest[:16]}; build the "
            f'corpus with this teacher as its input "tokenizer"'
        )
    if recipe.num_kept > vocab_size:
        raise BadInputError(
            f"recipe.num_kept is {recipe.num_kept}, the teacher's vocabulary has {vocab_size}; lower it"
        )
    return LogitFormat(
        value_dtype=recipe.value_dtype,
        vocab_size=vocab_size,
        num_kept=recipe.num_kept,
        temperatures=recipe.temperatures,
        tokenizer_digest=digest,
        teacher_digest=job.input("teacher").record.digest,
        corpus_digest=job.input("corpus").record.digest,
    )


def _rows(path: Path, vocab_size: int) -> list[Row]:
    rows = read_rows(path)
    for row in rows:
        if not len(row.input_ids) or row.input_ids.min() < 0 or row.input_ids.max() >= vocab_size:
            raise BadInputError(
                f"row {row.row_id} of {path.name} has no tokens or ids outside the teacher's {vocab_size}; build the "
                f"corpus again"
            )
    return rows


def _rows_of(shard: ShardPlan, rows: dict[Split, list[Row]]) -> list[Row]:
    return rows[shard.split][shard.first_row : shard.first_row + shard.num_rows]


def _complete(
    job: Job, recipe: DumpLogitsRecipe, form: LogitFormat, num_rows: dict[Split, int], plan: Sequence[ShardPlan]
) -> None:
    receipts = _all_receipts(job, plan)
    entries = tuple(
        ShardEntry(
            **shard.model_dump(),
            num_tokens=receipts[shard.name].metrics["tokens"],
            num_targets=receipts[shard.name].metrics["targets"],
        )
        for shard in plan
    )
    schema = LogitSchema(**form.model_dump(), rows_per_shard=recipe.rows_per_shard, num_rows=num_rows, shards=entries)
    directory = job.new_directory("main")
    (directory / SCHEMA_FILE).write_text(json.dumps(schema.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
    statistics = {split: [receipts[shard.name].metrics for shard in plan if shard.split == split] for split in num_rows}
    num_bytes = sum(entry.size for shard in plan for entry in receipts[shard.name].objects)
    job.complete(directory, store_metrics(statistics, num_bytes), covers=[shard.name for shard in plan])


def _all_receipts(job: Job, plan: Sequence[ShardPlan]) -> dict[str, ShardReceipt]:
    """Every shard's receipt; waits for those of other processes, whose failure ends this one too."""
    while True:
        receipts = job.receipts()
        if all(shard.name in receipts for shard in plan):
            return receipts
        if job.stop_requested:
            job.preempted()
        time.sleep(1)


if __name__ == "__main__":
    worker_main(run)
