"""Tiny models with two byte-level tokenizers: one token a byte, and one with merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.logits.rows import Row, row_id_of, write_rows
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer

# As Llama's does, it prints today's date unless it is given one.
TEMPLATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today: ' + date_string + '\n' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "The lease is renewed while the shard is written.",
    "naïve café, 12345 + 678 = 13023 ☃ and a snow\u2028man",
    "A third document, longer than one window of the tiny model, so that it has to be cut into several. " * 2,
)
MODEL_CONTEXT = 96
ModelFolder = Callable[..., Path]


def make_tokenizer(num_merges: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=259 + num_merges,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


@pytest.fixture(autouse=True)
def _environment(own_environment: None) -> None:
    """As the workers of these tests are this process."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """model_folder(seed, num_merges=0) is a model directory; rows of the embedding exceed the tokenizer's ids."""
    made: dict[tuple[int, int], Path] = {}

    def make(seed: int, num_merges: int = 0) -> Path:
        if (seed, num_merges) not in made:
            directory = tmp_path_factory.mktemp(f"model-{seed}-{num_merges}")
            tokenizer = make_tokenizer(num_merges)
            torch.manual_seed(seed)
            config = Qwen2Config(
                vocab_size=len(tokenizer) + 5,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=MODEL_CONTEXT,
                bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.3,
            )
            save_causal_lm(Qwen2ForCausalLM(config), directory)
            save_tokenizer(tokenizer, directory)
            made[seed, num_merges] = directory
        return made[seed, num_merges]

    return make


@pytest.fixture(scope="session")
def corpus_folder(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose held-out split has the texts above and a conversation, which no bits are counted of."""
    directory = tmp_path_factory.mktemp("corpus")
    tokenizer = load_tokenizer(model_folder(0))
    rows = []
    for index, text in enumerate((*TEXTS, "hi there")):
        ids = torch.tensor(tokenizer.encode(text), dtype=torch.int32).numpy()
        mask = (torch.arange(len(ids)) > 0).to(torch.uint8).numpy()
        kind = "text" if index < len(TEXTS) else "chat"
        rows.append(Row(row_id_of(ids), ids, mask, text, len(text.encode()), kind, "test"))
    write_rows(directory / "heldout.parquet", rows)
    write_rows(directory / "train.parquet", rows[:1])
    (directory / "corpus.json").write_text("{}")
    return directory
