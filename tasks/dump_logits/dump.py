"""The work on a plan of shards: first the prior, then whatever shard nobody else has."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from tasks.artifacts.errors import CorruptArtifactError
from tasks.dump_logits.claims import Claim, ShardClaims
from tasks.dump_logits.corpus_rows import CorpusSplit
from tasks.dump_logits.distributions import BatchResult, Distributions
from tasks.dump_logits.pipeline import Pipeline
from tasks.dump_logits.prior_sample import sampled_rows
from tasks.dump_logits.shard_output import ShardOutput
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.dump_logits.tensor_group import TensorGroup
from tasks.logits.prior import PRIOR_SHARD, Prior, read_prior, write_prior
from tasks.logits.schema import LogitFormat, ShardPlan, Split
from tasks.worker.job import Job

IDLE_SECONDS = 10
"""How often the others of a tensor-parallel group hear of a leader that waits."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
"""Between two looks at shards that are all with other workers."""


class Dump:
    """One worker's part in a dump, with what it needs."""

    def __init__(
        self,
        job: Job,
        runtime: DumpLogitsRuntime,
        splits: Mapping[Split, CorpusSplit],
        plan: Sequence[ShardPlan],
        forward: Distributions,
        known: Mapping[str, float],
        group: TensorGroup | None,
    ) -> None:
        """`known` is what was measured of the teacher before, and stands in the prior's receipt."""
        self._job = job
        self._runtime = runtime
        self._splits = splits
        self._plan = {shard.name: shard for shard in plan}
        self._forward = forward
        self._known = dict(known)
        self._group = group
        self._progress = _Progress(
            job,
            {
                shard.name: int(splits[shard.split].lengths_N[shard.first_row : shard.first_row + shard.num_rows].sum())
                for shard in plan
            },
        )
        self._last_idle = time.monotonic()
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def prior(self, claims: ShardClaims, num_tokens: int, vocab_size: int) -> Prior:
        """The order of the tokens: counted here, or by whoever was first.

        Args:
            claims: of the shard "prior" alone.
            num_tokens: of the rows on which it is counted.
            vocab_size: V.
        """
        while not claims.look():
            claim = claims.take()
            if claim is None:
                self._pause()
                continue
            try:
                self._count(claim, num_tokens, vocab_size)
            finally:
                claim.release()
        return committed_prior(self._job)

    def _count(self, claim: Claim, num_tokens: int, vocab_size: int) -> None:
        split = self._splits.get("train") or next(iter(self._splits.values()))
        rows = split.read_some(sampled_rows(split.lengths_N, num_tokens))
        counts_V = np.zeros(vocab_size, np.int64)
        num_positions = 0
        for result in self._forward.batches(rows):
            self._look()
            for positions in result.positions:
                ids_PK = positions.topk_ids_PK
                counts_V += np.bincount(ids_PK[ids_PK >= 0], minlength=vocab_size)
                num_positions += len(positions)
        if claim.lost:
            return
        directory = self._job.new_directory(PRIOR_SHARD)
        write_prior(directory, Prior.from_counts(counts_V), num_positions)
        metrics = {"rows": len(rows), "positions": num_positions, **self._known}
        self._job.commit_shard(PRIOR_SHARD, directory, metrics)
        shutil.rmtree(directory)

    def shards(self, claims: ShardClaims, form: LogitFormat, prior: Prior) -> None:
        """Makes free shards until all have a receipt, others' too."""
        with Pipeline[BatchResult](self._look) as pipeline:
            while True:
                claim = claims.take()
                self._progress.finished(claims.finished)
                if claim is not None:
                    self._pause_seconds = FIRST_PAUSE_SECONDS
                    self._shard(pipeline, claim, form, prior)
                elif claims.all_finished:
                    return
                elif claims.only_mine_left:
                    pipeline.drain()
                else:
                    self._pause()

    def _shard(self, pipeline: Pipeline[BatchResult], claim: Claim, form: LogitFormat, prior: Prior) -> None:
        shard = self._plan[claim.name]
        try:
            rows = self._splits[shard.split].read(shard.first_row, shard.num_rows)
            gold = self._forward.gold(rows, self._runtime.gold_rows_per_shard)
            output = ShardOutput(self._job, claim, shard, form, prior, rows, gold)
        except BaseException:
            claim.release()
            raise
        pipeline.begin(output)
        for result in self._forward.batches(rows):
            pipeline.put(result)
            self._progress.computed(shard.name, result.num_tokens)
            if claim.lost:
                self._job.log(f"{shard.name} was taken over by another worker and is left to it")
                pipeline.abandon()
                return
        pipeline.end()

    def _pause(self) -> None:
        """Waits for other workers, each time longer."""
        end = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        while (left := end - time.monotonic()) > 0:
            self._look()
            time.sleep(min(left, 0.2))

    def _look(self) -> None:
        """Between batches and while waiting: whether to stop, and a word to those who wait for this one."""
        self._job.leave_if_asked()
        now = time.monotonic()
        if self._group is not None and now - self._last_idle >= IDLE_SECONDS:
            self._last_idle = now
            self._group.idle()


class _Progress:
    """How many of the plan's tokens are done, by whomever."""

    def __init__(self, job: Job, tokens_of: Mapping[str, int]) -> None:
        self._job = job
        self._tokens_of = tokens_of
        self._computed: dict[str, int] = {}
        self._finished: frozenset[str] = frozenset()
        self._own = 0
        self._started = self._told = time.monotonic()

    def computed(self, shard: str, num_tokens: int) -> None:
        """This worker has computed `num_tokens` more of a shard."""
        self._computed[shard] = self._computed.get(shard, 0) + num_tokens
        self._own += num_tokens
        if time.monotonic() - self._told >= 1:
            self._tell()

    def finished(self, shards: frozenset[str]) -> None:
        """These have receipts."""
        if shards != self._finished:
            self._finished = shards
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        done = sum(self._tokens_of[shard] for shard in self._finished)
        done += sum(tokens for shard, tokens in self._computed.items() if shard not in self._finished)
        rate = self._own / max(self._told - self._started, 1e-9)
        self._job.progress(done, sum(self._tokens_of.values()), "tokens", tokens_per_second=rate)


def committed_prior(job: Job) -> Prior:
    """The prior that the store's shards are written with."""
    receipt = job.artifact.receipt(PRIOR_SHARD)
    root = next((entry for entry in receipt.objects if entry.name == f"{PRIOR_SHARD}/zarr.json"), None)
    where = f"{job.artifact.uri}/shards/{PRIOR_SHARD}.json"
    if root is None:
        raise CorruptArtifactError(f"{where} names no zarr.json; delete it and all other receipts and run again")
    folder = str(PurePosixPath(job.artifact.path(root.path)).parent)
    return read_prior(job.store.zarr_store(folder), job.store.locate(folder))
