"""The token that documents begin with."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.models.stage import MiniatureSource


def _loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    directory = MiniatureSource(name=name).directory()
    return load_causal_lm(directory, dtype=torch.float32), load_tokenizer(directory)


def test_a_bos_that_begins_documents_is_taken() -> None:
    model, tokenizer = _loaded("llama-teacher")
    assert tokenizer.convert_ids_to_tokens(start_token(model, tokenizer)) == "<|begin_of_text|>"


def test_a_bos_that_opens_turns_gives_way_to_what_documents_began_with() -> None:
    model, tokenizer = _loaded("llama-teacher")
    tokenizer.bos_token, tokenizer.unk_token = "<|eot_id|>", "<|begin_of_text|>"
    assert tokenizer.convert_ids_to_tokens(start_token(model, tokenizer)) == "<|begin_of_text|>"


def test_without_a_bos_the_separator_is_found_behind_the_end_of_a_turn() -> None:
    model, tokenizer = _loaded("qwen-teacher")
    assert tokenizer.bos_token is None
    assert tokenizer.convert_ids_to_tokens(start_token(model, tokenizer)) == "<|endoftext|>"


def test_a_model_that_does_not_tell_them_apart_keeps_its_bos() -> None:
    model, tokenizer = _loaded("llama-teacher")
    tokenizer.bos_token, tokenizer.unk_token = "<|eot_id|>", "<|begin_of_text|>"
    for weights in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.nn.init.zeros_(weights)
    assert tokenizer.convert_ids_to_tokens(start_token(model, tokenizer)) == "<|eot_id|>"
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    assert tokenizer.convert_ids_to_tokens(start_token(model, tokenizer)) == "<|eot_id|>"


def test_neither_bos_nor_end_token_is_refused() -> None:
    model, tokenizer = _loaded("qwen-teacher")
    model.config.bos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(BadInputError, match="neither a BOS nor an end token"):
        start_token(model, tokenizer)
