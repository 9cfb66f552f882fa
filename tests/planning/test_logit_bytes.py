"""Objects and bytes of a logit store against one that the writer writes; tests/flows/test_costs.py has a real dump."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.logits import writer
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior
from tasks.logits.rows import make_row
from tasks.logits.schema import LogitFormat, Split, TopKSupport, plan_shards
from tasks.planning import logit_bytes
from tasks.planning.logit_bytes import entries_of, store_size
from tests.logits.whole_shard import write_shard

VOCAB, KEPT, LENGTH, PER_SHARD = 4096, 32, 64, 8
ROWS: dict[Split, int] = {"train": 20, "heldout": 3}


def positions(count: int, generator: np.random.Generator) -> Positions:
    """Ids that are drawn by Zipf's law, values of a distribution that falls about as a language model's does."""
    noise_PV = generator.gumbel(size=(count, VOCAB))
    ids_PK = np.argsort(-(noise_PV - np.log(np.arange(VOCAB) + 2.7)), axis=1)[:, :KEPT].astype(np.int32)
    values_PK = -np.sort(generator.exponential(2.5, (count, KEPT)), axis=1)
    values_PK -= np.log(np.exp(values_PK).sum(1, keepdims=True) / 0.9)
    none_PM = np.empty((count, 0), np.float32)
    gold_P = generator.uniform(-6, -0.5, count).astype(np.float32)
    tail_P = np.full(count, np.log(0.1), np.float32)
    return Positions(
        ids_PK, values_PK.astype(np.float32), tail_P, gold_P, none_PM, none_PM, np.empty((count, 0), np.uint16)
    )


def test_the_writer_cuts_objects_by_the_same_bounds() -> None:
    """Planning and logits may not import each other."""
    assert (logit_bytes.OBJECT_BYTES, logit_bytes.MAX_DOCUMENTS_PER_OBJECT) == (
        writer.OBJECT_BYTES, writer.MAX_DOCUMENTS_PER_OBJECT
    )  # fmt: skip


def test_a_written_store_has_the_objects_and_bytes_that_are_forecast(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    prior = Prior.from_counts(np.maximum(1, 1e6 / (np.arange(VOCAB) + 2.7)).astype(np.int64))
    form = LogitFormat.model_validate(
        {
            "values": "warped",
            "vocab_size": VOCAB,
            "support": TopKSupport(num_kept=KEPT).model_dump(),
            "temperatures": (),
            "teacher": {"weights_digest": "m" * 64, "dtype": "float32"},
            "tokenizer_digest": "t" * 64,
            "corpus_digest": "c" * 64,
            "prior_digest": prior.digest,
            "max_error_nats": 0.3,
        }
    )
    for shard in plan_shards(ROWS, PER_SHARD):
        rows = [
            make_row(
                generator.integers(0, VOCAB, LENGTH).astype(np.int32),
                np.ones(LENGTH, np.uint8),
                "",
                "text",
                "t",
                f"{n:064x}",
            )
            for n in range(shard.num_rows)
        ]
        write_shard(
            tmp_path / shard.name, shard, form, rows, positions(shard.num_rows * (LENGTH - 1), generator), prior
        )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    forecast = store_size(
        tokens=sum(ROWS.values()) * LENGTH,
        rows=list(ROWS.values()),
        longest=LENGTH,
        rows_per_shard=PER_SHARD,
        documents_per_chunk=1,
        vocabulary=VOCAB,
        entries=KEPT,
    )
    assert forecast.shards == 4
    # The forecast counts the prior (3) and the description of the whole store (1) besides.
    assert forecast.objects == len(files) + 4
    written = sum(path.stat().st_size for path in files)
    assert forecast.bytes - 2 * VOCAB == pytest.approx(written, rel=0.1)


def test_long_documents_take_more_objects() -> None:
    def objects(longest: float, per_chunk: int = 1) -> int:
        size = store_size(
            tokens=512e3,
            rows=[512],
            longest=longest,
            rows_per_shard=512,
            documents_per_chunk=per_chunk,
            vocabulary=128_256,
            entries=47,
        )
        return size.objects - 8 - 4

    # A document of 4,096 tokens is 418 kB uncompressed, so 32 MiB hold 80 of them.
    assert objects(4096) == 7
    assert objects(128) == 1
    assert objects(4096, per_chunk=512) == 1, "a chunk is never cut"


@pytest.mark.parametrize(
    ("support", "low", "high"),
    [
        ({"kind": "top_k", "num_kept": 64}, 64, 64),
        ({"kind": "adaptive", "min_probability": 1e-3, "min_kept": 1, "max_kept": 128}, 44, 51),
        ({"kind": "adaptive", "min_probability": 1e-6, "min_kept": 1, "max_kept": 128}, 128, 128),
        ({"kind": "adaptive", "min_probability": 0.5, "min_kept": 4, "max_kept": 128}, 4, 4),
        ({"kind": "adaptive", "min_probability": None, "min_mass": 0.99, "min_kept": 1, "max_kept": 200}, 200, 200),
        ({"kind": "sampled", "num_draws": 50}, 15, 17),
    ],
)
def test_entries_of_a_support_are_those_that_were_measured(support: dict[str, object], low: float, high: float) -> None:
    assert low <= entries_of(support, 47) <= high
