"""Real logits as committed stores, written by the writer that a dump uses: the one place that knows its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import file_sha256, sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord
from tasks.artifacts.store import Store
from tasks.logits.codec import max_error_nats
from tasks.logits.positions import Positions
from tasks.logits.prior import PRIOR_SHARD, Prior, write_prior
from tasks.logits.reader import DEFAULT_CACHE_BYTES, LogitReader, LogitRow
from tasks.logits.rows import Row, make_row
from tasks.logits.schema import SCHEMA_FILE, LogitFormat, LogitSchema, ShardEntry, ShardHeader, ShardPlan, Support
from tests.bench.jobs import finish
from tests.bench.real_logits import TEXT, real_logits
from tests.bench.supports import SAMPLED, TOP_64, Settings, positions_of
from tests.bench.teachers import VOCABULARIES
from tests.logits.whole_shard import write_shard

ATTEMPT = "00000000"


def form_of(vocabulary: str, settings: Settings, prior: Prior) -> LogitFormat:
    """The format that a profile with this support has by default."""
    support: Support = TypeAdapter(Support).validate_python(settings)
    return LogitFormat.model_validate(
        {
            "support": support,
            "vocab_size": VOCABULARIES[vocabulary].size,
            "teacher": {"weights_digest": sha256_hex(b"teacher")},
            "tokenizer_digest": sha256_hex(b"tokenizer"),
            "corpus_digest": sha256_hex(b"corpus"),
            "prior_digest": prior.digest,
            "max_error_nats": max_error_nats("warped", support),
        }
    )


@cache
def prior_of(vocabulary: str, kind: str) -> Prior:
    """Counted as a dump counts it, on the documents of the split "prior", which no measurement reads."""
    settings = SAMPLED if kind == "sampled" else TOP_64
    ids_PK = positions_of(real_logits(vocabulary, "prior"), settings).topk_ids_PK
    return Prior.from_counts(np.bincount(ids_PK[ids_PK >= 0], minlength=VOCABULARIES[vocabulary].size))


def prior_said(vocabulary: str) -> str:
    """For conditions."""
    return f"prior counted on {real_logits(vocabulary, 'prior').num_tokens} tokens of other documents, not in the size"


@dataclass(frozen=True)
class Shard:
    """Rows and positions of one shard of a bench store."""

    rows: Sequence[Row]
    positions: Positions


def shard_of_test(vocabulary: str, settings: Settings, copies: int = 1) -> Shard:
    """The whole test split, `copies` times."""
    real = real_logits(vocabulary, "test")
    return Shard(real.rows() * copies, Positions.joined([positions_of(real, settings)] * copies))


def long_shard_of_test(vocabulary: str, settings: Settings, num_tokens: int) -> Shard:
    """The test split's positions laid end to end in documents of `num_tokens`; what is left at the end is dropped."""
    whole = shard_of_test(vocabulary, settings)
    count = len(whole.positions) // (num_tokens - 1)
    ids = np.concatenate([row.input_ids for row in whole.rows]).astype(np.int32)[: count * num_tokens]
    mask = np.ones(num_tokens, np.uint8)
    mask[0] = 0
    rows = [make_row(part, mask, "", "text", "bench", str(index)) for index, part in enumerate(ids.reshape(count, -1))]
    return Shard(rows, whole.positions.cut(0, count * (num_tokens - 1)))


def write_one(directory: Path, vocabulary: str, settings: Settings, shard: Shard, number: int = 0) -> ShardHeader:
    """One shard as files in a new folder; `number` is its place among equal shards."""
    plan = ShardPlan(
        name=f"train-{number:05d}", split="train", first_row=number * len(shard.rows), num_rows=len(shard.rows)
    )
    prior = prior_of(vocabulary, settings["kind"])
    return write_shard(directory, plan, form_of(vocabulary, settings, prior), shard.rows, shard.positions, prior)


def commit(store: Store, directory: str, folder: Path, headers: Sequence[ShardHeader], prior: Prior) -> Manifest:
    """Uploads the shard folders below `folder`, named as their headers say, and finishes the artifact."""
    artifact = Artifact(store, directory)
    write_prior(folder / PRIOR_SHARD, prior)
    entries = tuple(
        ShardEntry(name=header.shard, **header.model_dump(include=set(ShardEntry.model_fields) - {"name"}))
        for header in headers
    )
    schema = LogitSchema(
        **headers[0].model_dump(include=set(LogitFormat.model_fields)),
        rows_per_shard=headers[0].num_rows,
        num_rows={"train": sum(header.num_rows for header in headers)},
        shards=entries,
    )
    (folder / SCHEMA_FILE).write_text(json.dumps(schema.model_dump(mode="json")))
    objects = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        shard, _, rest = name.rpartition("/") if "/" not in name else name.partition("/")
        path = f"data/{shard or 'main'}-{ATTEMPT}/{rest}"
        store.upload(file, artifact.path(path))
        objects.append(ObjectRecord(name=name, path=path, size=file.stat().st_size, sha256=file_sha256(file)))
    return finish(artifact, "dump_logits", objects)


def write_store(
    store: Store,
    directory: str,
    scratch: Path,
    vocabulary: str,
    settings: Settings,
    shards: int = 1,
    shard: Shard | None = None,
) -> Manifest:
    """A committed store of equal shards; by default each is the test split."""
    shard = shard or shard_of_test(vocabulary, settings)
    headers = [
        write_one(scratch / f"train-{number:05d}", vocabulary, settings, shard, number) for number in range(shards)
    ]
    return commit(store, directory, scratch, headers, prior_of(vocabulary, settings["kind"]))


def open_reader(store: Store, directory: str, cache_bytes: int = DEFAULT_CACHE_BYTES) -> LogitReader:
    """As a training opens it."""
    manifest = Artifact(store, directory).manifest()
    assert manifest is not None
    return LogitReader(store, directory, manifest, cache_bytes)


def read_all(reader: LogitReader) -> list[LogitRow]:
    """All rows in order."""
    rows = reader.rows("train")
    return [rows[index] for index in range(len(rows))]


def decoded_positions(rows: Sequence[LogitRow]) -> Positions:
    """What the rows hold, joined."""
    names = (
        "topk_ids_PK", "topk_logprobs_PK", "tail_logprob_P", "gold_logprob_P", "tempered_lse_PM", "tempered_tail_PM",
        "counts_PK",
    )  # fmt: skip
    return Positions(*(np.concatenate([np.asarray(getattr(row, name)) for row in rows]) for name in names))


def captured_mass(positions: Positions) -> float:
    """Mean mass of the kept entries."""
    return float(np.exp(positions.topk_logprobs_PK.astype(np.float64)).sum(1).mean())


def data_said(vocabulary: str) -> str:
    """For conditions: weights, text and size of what is measured."""
    real = real_logits(vocabulary, "test")
    return (
        f"{VOCABULARIES[vocabulary].weights}; {TEXT}, {len(real.token_offsets) - 1} documents, {real.num_tokens} tokens"
    )
