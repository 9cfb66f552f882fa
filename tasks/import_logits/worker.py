"""Reads logits that were stored elsewhere and writes a logit store, shard by shard.

The source is read three times: once whole, for the prior and all refusals, and once for each split's shards. A later
launch goes on after the shards that have a receipt.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path, PurePosixPath

import numpy as np

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.import_logits.aligned import align, loss_mask
from tasks.import_logits.measures import ImportStatistics, import_metrics
from tasks.import_logits.raw import RawDocument
from tasks.import_logits.source import SourceFiles
from tasks.import_logits.stage import ImportLogitsRecipe
from tasks.import_logits.survey import Contents, Survey, list_documents
from tasks.logits.codec import DocumentCodec, max_error_nats
from tasks.logits.prior import PRIOR_SHARD, Prior, read_prior, write_prior
from tasks.logits.rows import Row, make_row, row_id_of
from tasks.logits.schema import (
    SCHEMA_FILE,
    LogitFormat,
    LogitSchema,
    ShardEntry,
    ShardPlan,
    Support,
    TeacherRecord,
    TopKSupport,
    plan_shards,
)
from tasks.logits.writer import ShardWriter
from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.worker.job import InputArtifact, Job, worker_main


def run(job: Job) -> None:
    """Imports the recipe's source."""
    recipe = ImportLogitsRecipe.model_validate(job.recipe)
    digest, vocab_size = _vocabulary(job.input("tokenizer"), job.new_directory("tokenizer"))
    source = recipe.source.with_identity()
    files = SourceFiles(source, recipe.format)
    if files.head is not None and (files.head.tokenizer_digest, files.head.vocab_size) != (digest, vocab_size):
        raise BadInputError(
            f"the files were exported with tokenizer {files.head.tokenizer_digest[:16]} of {files.head.vocab_size} "
            f'tokens, the input "tokenizer" is {digest[:16]} with {vocab_size}; give the model that they belong to'
        )
    contents = list_documents(files, recipe.heldout_fraction, recipe.seed)
    _Import(job, recipe, files, contents, digest, vocab_size, str(source.content_sha256)).run()


def _vocabulary(model: InputArtifact, folder: Path) -> tuple[str, int]:
    """Digest and size (largest id + 1) of the tokenizer, without the model's weights."""
    for name in TOKENIZER_FILES:
        if model.manifest.object(name) is not None:
            (folder / name).write_bytes(model.bytes(name))
    tokenizer = load_tokenizer(folder)
    return tokenizer_digest(tokenizer), real_vocab_size(tokenizer)


class _Import:
    """One launch."""

    def __init__(
        self,
        job: Job,
        recipe: ImportLogitsRecipe,
        files: SourceFiles,
        contents: Contents,
        tokenizer: str,
        vocab_size: int,
        content: str,
    ) -> None:
        self._job = job
        self._recipe = recipe
        self._files = files
        self._contents = contents
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._content = content
        self._temperatures = files.head.temperatures if files.head is not None else ()
        self._plan = plan_shards(contents.num_rows, recipe.rows_per_shard)
        self._total = 2 * sum(contents.num_rows.values())
        """Each document is read for the prior and for its shard."""
        self._told = 0.0

    def run(self) -> None:
        receipts = self._job.receipts()
        if PRIOR_SHARD not in receipts:
            self._survey()
            receipts = self._job.receipts()
        prior = self._prior()
        form = self._format(prior, int(receipts[PRIOR_SHARD].metrics["widest"]))
        done = self._total // 2
        for shard in self._plan:
            if shard.name not in receipts:
                self._shard(shard, form, prior, done)
            done += shard.num_rows
        self._complete(form)

    def _survey(self) -> None:
        """Counts, checks and publishes the prior."""
        survey = Survey(self._vocab_size)
        places = sorted(place for split in self._contents.places.values() for place in split)
        head = self._files.head
        support = self._recipe.support or (head.support if head is not None else None)
        for raw in self._files.documents(places):
            document = align(raw, self._recipe.format, self._vocab_size)
            if support is not None:
                # What does not fit the layout should be known now, not hours later.
                document.laid_out(support, len(self._temperatures))
            survey.add(document)
            self._tell(survey.num_documents)
        survey.check()
        directory = self._job.new_directory(PRIOR_SHARD)
        write_prior(directory, Prior.from_counts(survey.counts_V), survey.num_positions)
        self._job.commit_shard(PRIOR_SHARD, directory, survey.record())
        shutil.rmtree(directory)

    def _prior(self) -> Prior:
        objects = self._job.artifact.receipt(PRIOR_SHARD).objects
        root = next((entry for entry in objects if entry.name == f"{PRIOR_SHARD}/zarr.json"), None)
        if root is None:
            raise CorruptArtifactError(
                f"{self._job.artifact.uri}/shards/{PRIOR_SHARD}.json names no zarr.json; delete all receipts beside it "
                f"and run again"
            )
        folder = str(PurePosixPath(self._job.artifact.path(root.path)).parent)
        return read_prior(self._job.store.zarr_store(folder), self._job.store.locate(folder))

    def _support(self, widest: int) -> Support:
        if self._recipe.support is not None:
            return self._recipe.support
        return self._files.head.support if self._files.head is not None else TopKSupport(num_kept=max(widest, 1))

    def _format(self, prior: Prior, widest: int) -> LogitFormat:
        support = self._support(widest)
        teacher = self._files.head.teacher if self._files.head is not None else TeacherRecord(weights_digest="")
        if self._recipe.teacher is not None:
            teacher = teacher.model_copy(update=self._recipe.teacher.model_dump())
        return LogitFormat(
            support=support,
            values=self._recipe.values,
            vocab_size=self._vocab_size,
            temperatures=self._temperatures,
            teacher=teacher,
            tokenizer_digest=self._tokenizer,
            corpus_digest=self._content,
            prior_digest=prior.digest,
            max_error_nats=max_error_nats(self._recipe.values, support),
            documents_per_chunk=self._recipe.documents_per_chunk,
        )

    def _shard(self, shard: ShardPlan, form: LogitFormat, prior: Prior, done: int) -> None:
        places = self._contents.places[shard.split][shard.first_row : shard.first_row + shard.num_rows]
        # The writer wants every document's tokens before the first distribution.
        rows = [_row(raw) for raw in self._files.masked_tokens(places)]
        directory = self._job.new_directory(shard.name)
        statistics, codec = ImportStatistics(), DocumentCodec(form, prior)
        writer = ShardWriter(directory, shard, form, rows, prior)
        try:
            for index, raw in enumerate(self._files.documents(places)):
                document = align(raw, self._recipe.format, self._vocab_size)
                document = document.laid_out(form.support, len(form.temperatures)).with_one_gold(codec)
                writer.add(index, document.positions)
                statistics.add(document)
                self._tell(done + index + 1)
            writer.close()
        except BaseException:
            writer.discard()
            raise
        self._job.commit_shard(shard.name, directory, statistics.record())
        shutil.rmtree(directory)

    def _tell(self, done: int) -> None:
        self._job.leave_if_asked()
        if time.monotonic() - self._told >= 1:
            self._told = time.monotonic()
            self._job.progress(done, self._total, "documents")

    def _complete(self, form: LogitFormat) -> None:
        receipts = self._job.receipts()
        entries = tuple(
            ShardEntry(
                **shard.model_dump(),
                num_tokens=receipts[shard.name].metrics["tokens"],
                num_targets=receipts[shard.name].metrics["targets"],
            )
            for shard in self._plan
        )
        num_rows = self._contents.num_rows
        schema = LogitSchema(
            **form.model_dump(), rows_per_shard=self._recipe.rows_per_shard, num_rows=num_rows, shards=entries
        )
        directory = self._job.new_directory("main")
        text = json.dumps(schema.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        (directory / SCHEMA_FILE).write_text(text)
        statistics = {
            split: [receipts[shard.name].metrics for shard in self._plan if shard.split == split] for split in num_rows
        }
        covers = [PRIOR_SHARD, *(shard.name for shard in self._plan)]
        num_bytes = sum(entry.size for name in covers for entry in receipts[name].objects)
        metrics = import_metrics(statistics, num_bytes) | {"duplicates": self._contents.duplicates}
        self._job.complete(directory, metrics, covers=covers)


def _row(raw: RawDocument) -> Row:
    ids = raw.input_ids_T.astype(np.int32)
    return make_row(ids, loss_mask(raw), "", "text", "import_logits", row_id_of(ids))


if __name__ == "__main__":
    worker_main(run)
