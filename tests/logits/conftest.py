"""A small logit store with every kind of row, written and committed as a dump would do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts.artifact import Artifact
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior, write_prior
from tasks.logits.rows import Row, row_id_of
from tasks.logits.schema import LogitFormat, LogitSchema, ShardEntry, Split, plan_shards
from tests.logits.whole_shard import write_shard

NUM_KEPT = 8
VOCAB = 300


def make_row(length: int, seed: int, vocab_size: int = VOCAB) -> Row:
    generator = np.random.default_rng(seed)
    input_ids = generator.integers(0, vocab_size, length).astype(np.int32)
    loss_mask = (generator.random(length) < 0.7).astype(np.uint8)
    loss_mask[0] = 0
    return Row(row_id_of(input_ids), input_ids, loss_mask, "text", 4, "text", "test")


def truncate(logits_PV: np.ndarray, gold_P: np.ndarray, num_kept: int, temperature: float | None = None) -> Positions:
    """The definition in float64: sort, cut, sum the rest."""
    logits_PV = logits_PV.astype(np.float64)
    top_P1 = logits_PV.max(1, keepdims=True)
    logprobs_PV = logits_PV - top_P1 - np.log(np.exp(logits_PV - top_P1).sum(1, keepdims=True))
    ids_PK = np.argsort(-logits_PV, axis=1, kind="stable")[:, :num_kept].astype(np.int32)
    values_PK = np.take_along_axis(logprobs_PV, ids_PK, 1)
    rest_PV = np.exp(logprobs_PV)
    np.put_along_axis(rest_PV, ids_PK, 0, 1)
    with np.errstate(divide="ignore"):
        tail_P = np.log(rest_PV.sum(1))
    none_PM = np.empty((len(ids_PK), 0))
    lse_PM = tail_PM = none_PM
    if temperature is not None:
        powers_PV = np.exp(logprobs_PV / temperature)
        lse_PM = np.log(powers_PV.sum(1, keepdims=True))
        np.put_along_axis(powers_PV, ids_PK, 0, 1)
        with np.errstate(divide="ignore"):
            tail_PM = np.log(powers_PV.sum(1, keepdims=True)) - lse_PM
    return Positions(
        np.where(np.isneginf(values_PK), np.int32(-1), ids_PK),
        values_PK.astype(np.float32),
        tail_P.astype(np.float32),
        logprobs_PV[np.arange(len(gold_P)), gold_P].astype(np.float32),
        lse_PM.astype(np.float32),
        tail_PM.astype(np.float32),
        np.empty((len(ids_PK), 0), np.uint16),
    )


def make_prior(vocab_size: int = VOCAB, seed: int = 0) -> Prior:
    return Prior.from_counts(np.random.default_rng(seed).integers(0, 50, vocab_size))


def make_positions(rows: list[Row], seed: int, temperature: float | None = None) -> Positions:
    generator = np.random.default_rng(seed)
    gold_P = np.concatenate([row.input_ids[1:] for row in rows])
    return truncate(generator.normal(0, 3, (len(gold_P), VOCAB)), gold_P, NUM_KEPT, temperature)


def make_format(values: str = "float32", temperatures: tuple[float, ...] = (2.0,), **fields: object) -> LogitFormat:
    vocab_size = int(str(fields.get("vocab_size", VOCAB)))
    return LogitFormat.model_validate(
        {
            "values": values,
            "vocab_size": vocab_size,
            "support": {"kind": "top_k", "num_kept": NUM_KEPT},
            "temperatures": temperatures,
            "teacher": {"weights_digest": "m" * 64, "dtype": "float32"},
            "tokenizer_digest": "t" * 64,
            "corpus_digest": "c" * 64,
            "prior_digest": make_prior(vocab_size).digest,
            "max_error_nats": 0.3,
            **fields,
        }
    )


LENGTHS: dict[Split, list[int]] = {"train": [5, 1, 300, 2, 40, 7, 90], "heldout": [11, 4]}
ROWS_PER_SHARD = 3


@pytest.fixture
def rows() -> dict[Split, list[Row]]:
    """Rows of both splits, one of them without any prediction."""
    return {
        split: [make_row(length, seed=100 * place + index) for index, length in enumerate(lengths)]
        for place, (split, lengths) in enumerate(LENGTHS.items())
    }


@pytest.fixture
def positions(rows: dict[Split, list[Row]]) -> dict[str, Positions]:
    """The distributions of each shard, by name."""
    plan = plan_shards({split: len(part) for split, part in rows.items()}, ROWS_PER_SHARD)
    return {
        shard.name: make_positions(
            rows[shard.split][shard.first_row : shard.first_row + shard.num_rows], seed=number, temperature=2.0
        )
        for number, shard in enumerate(plan)
    }


@pytest.fixture
def logit_store(
    tmp_path: Path,
    artifact_of: Callable[..., Artifact],
    rows: dict[Split, list[Row]],
    positions: dict[str, Positions],
) -> Artifact:
    """A committed store of float32 values with three shards of train and one of heldout."""
    return artifact_of(write_store(tmp_path / "logits", make_format(), rows, positions))


def write_store(
    directory: Path, form: LogitFormat, rows: dict[Split, list[Row]], positions: dict[str, Positions]
) -> Path:
    """The objects of a store, as a dump lays them out."""
    num_rows: dict[Split, int] = {split: len(part) for split, part in rows.items()}
    prior = make_prior(form.vocab_size)
    write_prior(directory / "prior", prior)
    entries = []
    for shard in plan_shards(num_rows, ROWS_PER_SHARD):
        part = rows[shard.split][shard.first_row : shard.first_row + shard.num_rows]
        header = write_shard(directory / shard.name, shard, form, part, positions[shard.name], prior)
        entries.append(ShardEntry(**shard.model_dump(), num_tokens=header.num_tokens, num_targets=header.num_targets))
    schema = LogitSchema(**form.model_dump(), rows_per_shard=ROWS_PER_SHARD, num_rows=num_rows, shards=tuple(entries))
    (directory / "logits.json").write_text(schema.model_dump_json())
    return directory
