"""Items of running text are read as the beginning of a document, whatever the tokenizer would put before them."""

from __future__ import annotations

import ast
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.artifact import Artifact
from tasks.benchmarks.cloze_items import Text
from tasks.benchmarks.cloze_tasks import METRIC, cloze_task
from tasks.benchmarks.declare import ClozeTasks
from tasks.benchmarks.loading import LoadedTasks
from tasks.evaluate.exact_lm import ExactLM
from tasks.evaluate.harness import evaluate_entry
from tasks.evaluate.stage import EvaluateRecipe
from tasks.logits.rows import make_row, write_rows
from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tests.committed import objects_of
from tests.evaluate.small_server import NAME, SmallServer

ModelFolder = Callable[..., Path]
RunStage = Callable[..., Artifact]
CLOZE: dict[str, Any] = {"type": "cloze", "items": 20, "choices": 3, "context_chars": 40}


def texts() -> list[Text]:
    draw, words = random.Random(0), [a + b + c for a in string.ascii_lowercase for b in "aeiou" for c in "xyz"]
    # A special token that is written out in a text is text.
    words += ["<|im_start|>"] * 20
    return [Text(f"{number}", " ".join(draw.choices(words, k=120)) + ".") for number in range(3)]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("bos", ["<|im_start|>", None])
def test_cloze_items_follow_the_token_that_documents_begin_with(
    model_folder: ModelFolder, bos: str | None, chat: bool
) -> None:
    tokenizer = load_tokenizer(model_folder(1))
    if bos is not None:
        tokenizer.bos_token = bos
        # As Llama's does, it puts its BOS before what it is not told to leave alone.
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
        assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    model = load_causal_lm(model_folder(1), dtype=torch.float32)
    recipe = EvaluateRecipe.model_validate(
        {"tasks": [CLOZE], "reference": "base", "candidate": "final", "apply_chat_template": chat}
    )
    lm = ExactLM("final", model, tokenizer, recipe, batch_size=4, before_batch=lambda: None)
    task = cloze_task(ClozeTasks.model_validate(CLOZE), texts())
    items, _ = evaluate_entry(lm, LoadedTasks("cloze", {"cloze": task}, METRIC, plain_text=True), recipe)
    start = start_token(model, tokenizer)
    for item, document in zip(items, task.eval_docs, strict=True):
        direct = [logprob(model, tokenizer, start, document["context"], word) for word in document["choices"]]
        assert [value for value, _ in ast.literal_eval(item.completion)] == pytest.approx(direct, abs=1e-3)


@torch.no_grad()
def logprob(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: int, context: str, word: str) -> float:
    before, whole = (
        [start, *tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)]
        for text in (context, f"{context} {word}")
    )
    logprobs_TV = model(torch.tensor([whole])).logits[0, :, : real_vocab_size(tokenizer)].log_softmax(-1)
    return float(sum(logprobs_TV[at - 1, whole[at]] for at in range(len(before), len(whole))))


def test_a_server_is_asked_after_the_same_token(
    run_stage: RunStage, model_folder: ModelFolder, artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [make_row([1, 2], [0, 1], each.text, "text", "test", each.document) for each in texts()]
    write_rows(corpus / "heldout.parquet", rows)
    served = {"model": NAME, "revision": "2", "api": "completions", "tokenizer": "here", "context_tokens": 128}
    recipe = {
        "tasks": [CLOZE],
        "reference": "base",
        "candidate": "here",
        "bits_per_byte": False,
        "served": {"there": served},
    }
    inputs = {"model.base": model_folder(1), "model.here": model_folder(2), "corpus": corpus}
    server = SmallServer(model_folder(2))
    try:
        runtime = {"servers": {"there": {"base_url": server.url}}}
        artifact = run_stage(
            "evaluate", recipe, {role: artifact_of(folder) for role, folder in inputs.items()}, runtime
        )
    finally:
        server.close()
    found = objects_of(artifact)
    here, there = (_outcomes(found[f"samples/{name}.jsonl"]) for name in ("here", "there"))
    assert there == here
    assert len(there) == CLOZE["items"]
    start = start_token(load_causal_lm(model_folder(2), dtype=torch.float32), load_tokenizer(model_folder(2)))
    asked = [prompt[0] for body in server.bodies for prompt in body["prompt"]]
    assert asked[-CLOZE["items"] * CLOZE["choices"] :] == [start] * CLOZE["items"] * CLOZE["choices"]


def _outcomes(samples: bytes) -> list[float]:
    return [json.loads(line)["outcome"] for line in samples.splitlines()]
