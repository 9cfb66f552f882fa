"""Small real parts for tests of training: models with padding rows, corpora, and logit stores of a dense teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.artifacts.artifact import Artifact
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior, write_prior
from tasks.logits.rows import Row, row_id_of, write_rows
from tasks.logits.schema import LogitFormat, LogitSchema, ShardEntry, TeacherRecord, TopKSupport, Values, plan_shards
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer, tokenizer_digest
from tasks.training.losses import Targets
from tests.logits.whole_shard import write_shard

VOCAB, ROWS, NUM_KEPT = 60, 64, 6
LENGTHS = {"train": [5, 12, 3, 9, 17, 8, 2, 14, 6, 11, 4, 20], "heldout": [7, 15, 4]}


def make_tokenizer(vocab_size: int = VOCAB) -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(vocab_size - 1)} | {"<|end|>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="w0")


def make_model(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": ROWS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    return Qwen2ForCausalLM(Qwen2Config(**(settings | changes))).eval()


def model_directory(directory: Path, model: PreTrainedModel, vocab_size: int = VOCAB) -> Path:
    save_causal_lm(model, directory)
    save_tokenizer(make_tokenizer(vocab_size), directory)
    return directory


def make_row(length: int, seed: int) -> Row:
    generator = np.random.default_rng(seed)
    input_ids = generator.integers(8, VOCAB, length).astype(np.int32)
    loss_mask = (generator.random(length) < 0.7).astype(np.uint8)
    loss_mask[0] = 0
    return Row(row_id_of(input_ids), input_ids, loss_mask, "text", 4, "text", "test")


def make_rows(lengths: Mapping[str, Sequence[int]] = LENGTHS) -> dict[str, list[Row]]:
    return {
        split: [make_row(length, 100 * place + index) for index, length in enumerate(part)]
        for place, (split, part) in enumerate(lengths.items())
    }


def corpus_directory(directory: Path, rows: Mapping[str, Sequence[Row]]) -> Path:
    directory.mkdir(parents=True)
    for split, part in rows.items():
        write_rows(directory / f"{split}.parquet", list(part))
    (directory / "corpus.json").write_text(json.dumps({"tokenizer_digest": tokenizer_digest(make_tokenizer())}))
    return directory


def truncate(logits_PV: np.ndarray, gold_P: np.ndarray, temperatures: Sequence[float]) -> Positions:
    """The definition in float64: sort, cut, sum the rest."""

    def log_sum(values: np.ndarray) -> np.ndarray:
        return np.log(np.exp(values).sum(1))

    logprobs_PV = logits_PV - log_sum(logits_PV)[:, None]
    ids_PK = np.argsort(-logprobs_PV, axis=1, kind="stable")[:, :NUM_KEPT]
    rest_PV = logprobs_PV.copy()
    np.put_along_axis(rest_PV, ids_PK, -np.inf, 1)
    lse_MP = [log_sum(logprobs_PV / temperature) for temperature in temperatures]
    tail_MP = [log_sum(rest_PV / T) - lse_P for T, lse_P in zip(temperatures, lse_MP, strict=True)]
    none_PM = np.empty((len(logits_PV), 0))
    return Positions(
        ids_PK.astype(np.int32),
        np.take_along_axis(logprobs_PV, ids_PK, 1).astype(np.float32),
        log_sum(rest_PV).astype(np.float32),
        logprobs_PV[np.arange(len(gold_P)), gold_P].astype(np.float32),
        (np.stack(lse_MP, 1) if lse_MP else none_PM).astype(np.float32),
        (np.stack(tail_MP, 1) if tail_MP else none_PM).astype(np.float32),
        none_PM.astype(np.uint16),
    )


@torch.no_grad()
def dense_logits(model: PreTrainedModel, row: Row) -> np.ndarray:
    """(P, V) float64 logits of the real rows."""
    logits_TR = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
    return logits_TR[:-1, :VOCAB].double().numpy()


def logit_store(
    directory: Path,
    artifact_of: Callable[..., Artifact],
    teacher: PreTrainedModel,
    rows: Mapping[str, Sequence[Row]],
    temperatures: tuple[float, ...] = (),
    values: Values = "float32",
) -> Artifact:
    """What a dump of this teacher on these rows would have committed."""
    form = LogitFormat(
        values=values,
        vocab_size=VOCAB,
        support=TopKSupport(num_kept=NUM_KEPT),
        temperatures=temperatures,
        tokenizer_digest=tokenizer_digest(make_tokenizer()),
        teacher=TeacherRecord(weights_digest="m" * 64),
        corpus_digest="c" * 64,
        prior_digest=(prior := Prior.identity(VOCAB)).digest,
        max_error_nats=0.3,
    )
    write_prior(directory / "prior", prior)
    num_rows: dict[Any, int] = {split: len(part) for split, part in rows.items()}
    entries = []
    for shard in plan_shards(num_rows, 8):
        part = rows[shard.split][shard.first_row : shard.first_row + shard.num_rows]
        positions = Positions.joined(
            [truncate(dense_logits(teacher, row), row.input_ids[1:], temperatures) for row in part]
        )
        header = write_shard(directory / shard.name, shard, form, part, positions, prior)
        entries.append(ShardEntry(**shard.model_dump(), num_tokens=header.num_tokens, num_targets=header.num_targets))
    schema = LogitSchema(**form.model_dump(), rows_per_shard=8, num_rows=num_rows, shards=tuple(entries))
    (directory / "logits.json").write_text(schema.model_dump_json())
    return artifact_of(directory)


def gold_targets(gold_N: Tensor) -> Targets:
    """Targets without a teacher."""
    count = len(gold_N)
    return Targets(gold_N, gold_N.new_empty(count, 0), torch.empty(count, 0), torch.zeros(count))
