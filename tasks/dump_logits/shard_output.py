"""One shard on its way from the device into the store."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
from zarr.storage import LocalStore

from tasks.dump_logits.claims import Claim
from tasks.dump_logits.distributions import BatchResult, GoldSample
from tasks.dump_logits.measures import DumpStatistics
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior
from tasks.logits.reader import ShardReader
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardPlan
from tasks.logits.writer import ShardWriter
from tasks.worker.job import Job


class ShardOutput:
    """Encodes results as they come and commits the shard under its claim (see tasks/dump_logits/pipeline.py)."""

    def __init__(
        self,
        job: Job,
        claim: Claim,
        plan: ShardPlan,
        form: LogitFormat,
        prior: Prior,
        rows: Sequence[Row],
        gold: Sequence[GoldSample],
    ) -> None:
        """`gold` is what the written shard is compared with before it counts."""
        self.claim = claim
        self._job = job
        self._plan = plan
        self._prior = prior
        self._gold = gold
        self._statistics = DumpStatistics(rows)
        self._directory = job.new_directory(plan.name)
        self._writer = ShardWriter(self._directory, plan, form, rows, prior)
        nothing = Positions.empty(0, form.width, len(form.temperatures), counted=form.support.kind == "sampled")
        for index, row in enumerate(rows):
            if len(row.input_ids) == 1:
                self._writer.add(index, nothing)
                self._statistics.add(index, nothing)

    def add(self, result: BatchResult) -> None:
        for index, positions in zip(result.indices, result.positions, strict=True):
            self._writer.add(index, positions)
            self._statistics.add(index, positions)
        self._statistics.add_batch(result.num_tokens, result.num_padded)

    def finish(self) -> None:
        self._writer.close()

    def commit(self) -> None:
        """Uploads the shard and writes its receipt; not if the shard is another worker's by now."""
        statistics = self._statistics.record(self._gold_errors())
        if self.claim.lost:
            self._job.log(
                f"{self._plan.name} was taken over by another worker while this one made it; it is left to that"
            )
            return
        self._job.commit_shard(self._plan.name, self._directory, statistics)

    def discard(self) -> None:
        self._writer.discard()
        shutil.rmtree(self._directory, ignore_errors=True)
        self.claim.release()

    def _gold_errors(self) -> np.ndarray:
        """Differences in nats between what the written shard says of the sampled rows and the recomputation."""
        shard = ShardReader(LocalStore(self._directory, read_only=True), self._prior)
        errors = [np.empty(0)]
        for sample in self._gold:
            stored_C = shard.row(sample.index).gold_logprob_P[sample.where].astype(np.float64)
            errors.append(np.abs(stored_C - sample.logprobs))
        return np.concatenate(errors)
