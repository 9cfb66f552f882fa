"""The shipped miniatures: small, complete, and worth learning from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tasks.exercises import KINDS, generate
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, reloads_exactly, tokenizer_digest
from tasks.models.pretrain import accuracy, bits_per_byte, heldout_documents
from tasks.models.stage import MINIATURES

NAMES = ("llama-teacher", "qwen-base", "qwen-student", "qwen-teacher")


def test_they_weigh_at_most_8_mb_together() -> None:
    assert sorted(path.name for path in MINIATURES.iterdir()) == list(NAMES)
    assert sum(path.stat().st_size for path in MINIATURES.rglob("*")) <= 8 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_complete_model_in_bf16(name: str) -> None:
    directory = MINIATURES / name
    assert {path.name for path in directory.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["vocab_size"] % 128 == 0
    tokenizer = load_tokenizer(directory)
    assert reloads_exactly(directory)
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"][0] == tokenizer.eos_token_id


def test_the_two_families_differ_where_real_ones_do() -> None:
    llama, qwen, student = (
        load_tokenizer(MINIATURES / name) for name in ("llama-teacher", "qwen-teacher", "qwen-base")
    )
    assert tokenizer_digest(qwen) == tokenizer_digest(student) != tokenizer_digest(llama)
    assert llama.encode("a")[0] == llama.bos_token_id
    assert qwen.bos_token_id is None
    assert len(llama.encode("10", add_special_tokens=False)) == 1
    assert len(qwen.encode("10", add_special_tokens=False)) == 2
    rows = json.loads((MINIATURES / "qwen-teacher" / "config.json").read_text())["vocab_size"]
    assert len(qwen) < rows, "padding rows are what this family is here to test"
    tied = {name: json.loads((MINIATURES / name / "config.json").read_text())["tie_word_embeddings"] for name in NAMES}
    assert set(tied.values()) == {True, False}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    documents = heldout_documents()
    values = {}
    for name in NAMES:
        directory: Path = MINIATURES / name
        model, tokenizer = load_causal_lm(directory, dtype=torch.float32), load_tokenizer(directory)
        values[name] = {"bits_per_byte": bits_per_byte(model, tokenizer, documents, 40)}
        for kind in KINDS:
            values[name][kind] = accuracy(model, tokenizer, generate(kind, "test", 20, seed=2), "01 Feb 2025")
    return values


def test_teachers_predict_unseen_text_better_than_the_student(measured: dict[str, dict[str, float]]) -> None:
    for teacher in ("llama-teacher", "qwen-teacher"):
        assert measured[teacher]["bits_per_byte"] < measured["qwen-student"]["bits_per_byte"] - 0.05


def test_teachers_know_the_exercises_and_the_student_has_much_to_learn(measured: dict[str, dict[str, float]]) -> None:
    def mean(name: str) -> float:
        return sum(measured[name][kind] for kind in KINDS) / len(KINDS)

    assert mean("llama-teacher") > 0.7
    assert mean("qwen-teacher") > 0.7
    assert 0.05 < mean("qwen-student") < 0.4
    assert mean("qwen-base") < 0.05
