"""Runs a teacher over a corpus and writes a logit store, shard by shard.

The plan of shards is a function of the corpus and the recipe. Any number of workers share it: those of this launch and
of other launches and hosts with the same artifact key (tasks/dump_logits/claims.py). Each leases a shard that nobody
has, makes it, commits its receipt and takes the next, until all have one. Before the first of them comes the shard
"prior", for which everybody waits. Then each launch's first rank finishes the artifact: all with the same bytes, and
the first of them counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.dump_logits.claims import ShardClaims, first_place
from tasks.dump_logits.corpus_rows import CorpusSplit
from tasks.dump_logits.distributions import Distributions
from tasks.dump_logits.dump import Dump, committed_prior
from tasks.dump_logits.forward import Forward
from tasks.dump_logits.measures import dump_metrics
from tasks.dump_logits.served import ServedTeacher
from tasks.dump_logits.served_forward import ServedForward
from tasks.dump_logits.server_check import ServerCheck
from tasks.dump_logits.stage import DumpLogitsRecipe, DumpLogitsRuntime
from tasks.dump_logits.teacher import Teacher, check_config, check_rows, config_of
from tasks.dump_logits.teacher_recipe import TeacherRecipe
from tasks.dump_logits.teacher_server import ServerClient
from tasks.dump_logits.tensor_group import Place, TensorGroup, device_of_rank
from tasks.logits.codec import max_error_nats
from tasks.logits.prior import PRIOR_SHARD, Prior
from tasks.logits.schema import (
    SCHEMA_FILE,
    LogitFormat,
    LogitSchema,
    SampledSupport,
    ShardEntry,
    ShardPlan,
    Split,
    TeacherRecord,
    plan_shards,
)
from tasks.modeling.hub import REFERENCE_FILE
from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.worker.job import Job, PreemptedError, worker_main


def run(job: Job) -> None:
    recipe = DumpLogitsRecipe.model_validate(job.recipe)
    runtime = DumpLogitsRuntime.model_validate(job.runtime)
    torch.set_num_threads(runtime.threads)
    place = Place.of_environment(runtime.tensor_parallel)
    if place.group_size == 1:
        _lead(job, recipe, runtime, place, None)
        return
    device = device_of_rank(runtime.device)
    group = TensorGroup(place, device)
    if not group.leads:
        if group.hears_load():
            # A served teacher has no group: the config refuses that.
            assert isinstance(recipe.teacher, TeacherRecipe)
            Teacher(job.input("teacher").directory(), recipe.teacher, device, 1, group).follow()
        return
    try:
        _lead(job, recipe, runtime, place, group)
    except PreemptedError:
        # After any other error the launcher ends the group: the others may be in a pass that this one left.
        group.end()
        raise
    group.end()


def _lead(
    job: Job, recipe: DumpLogitsRecipe, runtime: DumpLogitsRuntime, place: Place, group: TensorGroup | None
) -> None:
    """The part of a process that takes shards."""
    device = device_of_rank(runtime.device)
    directory = _described(job) if isinstance(recipe.teacher, ServedTeacher) else job.input("teacher").directory()
    tokenizer, digest, vocab_size = _vocabulary(job, recipe, directory)
    corpus = job.input("corpus").directory()
    splits: dict[Split, CorpusSplit] = {
        split: CorpusSplit(corpus / f"{split}.parquet", vocab_size) for split in recipe.splits
    }
    plan = plan_shards({split: len(rows) for split, rows in splits.items()}, recipe.rows_per_shard)
    if not plan:
        raise BadInputError(f"the corpus has no rows in {', '.join(recipe.splits)}; there is nothing to dump")

    def format_with(prior: Prior) -> LogitFormat:
        return _format(job, recipe, directory, digest, vocab_size, prior)

    start = first_place(job.spec.attempt, place.worker, place.num_workers, len(plan))
    claims = ShardClaims(job.artifact, [shard.name for shard in plan], start, runtime.lease_ttl_seconds)
    prior_claims = ShardClaims(job.artifact, [PRIOR_SHARD], 0, runtime.lease_ttl_seconds)
    if not (claims.all_finished and prior_claims.all_finished):
        longest = [
            (rows.row_id(index), int(rows.lengths_N[index]))
            for rows in splits.values()
            if len(rows)
            for index in [int(rows.lengths_N.argmax())]
        ]
        with ExitStack() as held:
            if isinstance(recipe.teacher, ServedTeacher):
                check_rows(config_of(directory), vocab_size, longest)
                forward, known = _served(job, recipe, runtime, held, tokenizer, vocab_size, splits, longest)
            else:
                check_config(directory, recipe.teacher, vocab_size, longest, place.group_size, device)
                if group is not None:
                    group.load()
                teacher = Teacher(directory, recipe.teacher, device, vocab_size, group)
                teacher.check_formula(splits[plan[0].split].read(0, 1)[0].input_ids)
                forward, known = Forward(teacher, recipe, runtime), {}
            dump = Dump(job, runtime, splits, plan, forward, known, group)
            prior = dump.prior(prior_claims, recipe.prior_tokens, vocab_size)
            dump.shards(claims, format_with(prior), prior)
    if job.rank == 0 and not job.store.exists(job.artifact.path(f"shards/{MAIN_SHARD}.json")):
        _complete(job, recipe, format_with(committed_prior(job)), splits, plan)
        for every in (prior_claims, claims):
            every.sweep()


def _described(job: Job) -> Path:
    """The teacher's tokenizer and config.json, without its weights, which are the server's affair."""
    teacher, folder = job.input("teacher"), job.new_directory("teacher")
    for name in (*TOKENIZER_FILES, "config.json", REFERENCE_FILE):
        if teacher.manifest.object(name) is not None:
            (folder / name).write_bytes(teacher.bytes(name))
    return folder


def _served(
    job: Job,
    recipe: DumpLogitsRecipe,
    runtime: DumpLogitsRuntime,
    held: ExitStack,
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    splits: Mapping[Split, CorpusSplit],
    longest: Sequence[tuple[str, int]],
) -> tuple[Distributions, dict[str, float]]:
    """A server that has been checked on the longest row, and what was measured of it."""

    assert runtime.server is not None
    assert not isinstance(recipe.support, SampledSupport)
    server = held.enter_context(ServerClient(runtime.server))
    rows = max(splits.values(), key=lambda split: int(split.lengths_N.max(initial=0)))
    row = rows.read(int(rows.lengths_N.argmax()), 1)[0]
    known: dict[str, float] = {}
    if len(row.input_ids) > 1:
        known = ServerCheck(server, recipe.support, recipe.teacher.dtype).run(tokenizer, vocab_size, row, longest)
        told = "" if known["server_tokenizer_known"] else "; its tokenizer it does not tell, so that is not checked"
        job.log(
            f"{runtime.server.base_url} answers twice within {known['server_repeat_max']:.2g} nats, and as it "
            f"generates within {known['server_greedy_max']:.2g}{told}"
        )
    return ServedForward(server, recipe.support, vocab_size, job.leave_if_asked), known


def _vocabulary(
    job: Job, recipe: DumpLogitsRecipe, teacher_directory: Path
) -> tuple[PreTrainedTokenizerFast, str, int]:
    """The tokenizer that corpus and teacher must share, its digest and its size (largest id + 1)."""
    tokenizer = load_tokenizer(teacher_directory)
    digest, vocab_size = tokenizer_digest(tokenizer), real_vocab_size(tokenizer)
    corpus_digest = job.input("corpus").json("corpus.json")["tokenizer_digest"]
    if corpus_digest != digest:
        raise BadInputError(
            f"the corpus was tokenized with {corpus_digest[:16]}, the teacher's tokenizer is {digest[:16]}; build the "
            f'corpus with this teacher as its input "tokenizer"'
        )
    if recipe.support.kind != "sampled" and recipe.support.width > vocab_size:
        raise BadInputError(
            f"recipe.support keeps {recipe.support.width} entries, the teacher's vocabulary has {vocab_size}; lower it"
        )
    return tokenizer, digest, vocab_size


def _format(
    job: Job, recipe: DumpLogitsRecipe, teacher_directory: Path, tokenizer: str, vocab_size: int, prior: Prior
) -> LogitFormat:
    teacher, reference = recipe.teacher, teacher_directory / REFERENCE_FILE
    origin = json.loads(reference.read_text(encoding="utf-8")) if reference.is_file() else {}
    return LogitFormat(
        support=recipe.support,
        values=recipe.values,
        vocab_size=vocab_size,
        temperatures=recipe.temperatures,
        teacher=TeacherRecord(
            weights_digest=job.input("teacher").record.digest,
            repo=origin.get("repo"),
            revision=origin.get("revision"),
            dtype=teacher.dtype,
            attention=f"served by {teacher.engine}" if isinstance(teacher, ServedTeacher) else teacher.attention,
            quantisation=teacher.quantisation,
        ),
        tokenizer_digest=tokenizer,
        corpus_digest=job.input("corpus").record.digest,
        prior_digest=prior.digest,
        max_error_nats=max_error_nats(recipe.values, recipe.support),
        documents_per_chunk=recipe.documents_per_chunk,
    )


def _complete(
    job: Job,
    recipe: DumpLogitsRecipe,
    form: LogitFormat,
    splits: Mapping[Split, CorpusSplit],
    plan: Sequence[ShardPlan],
) -> None:
    receipts = job.receipts()
    entries = tuple(
        ShardEntry(
            **shard.model_dump(),
            num_tokens=receipts[shard.name].metrics["tokens"],
            num_targets=receipts[shard.name].metrics["targets"],
        )
        for shard in plan
    )
    num_rows = {split: len(rows) for split, rows in splits.items()}
    schema = LogitSchema(**form.model_dump(), rows_per_shard=recipe.rows_per_shard, num_rows=num_rows, shards=entries)
    directory = job.new_directory("main")
    (directory / SCHEMA_FILE).write_text(json.dumps(schema.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
    statistics = {split: [receipts[shard.name].metrics for shard in plan if shard.split == split] for split in splits}
    covers = [PRIOR_SHARD, *(shard.name for shard in plan)]
    num_bytes = sum(entry.size for name in covers for entry in receipts[name].objects)
    known = {name: value for name, value in receipts[PRIOR_SHARD].metrics.items() if name.startswith("server_")}
    job.complete(directory, dump_metrics(statistics, num_bytes) | known, covers=covers)


if __name__ == "__main__":
    worker_main(run)
