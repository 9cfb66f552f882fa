"""Builds the miniatures: `python -m tasks.models.pretrain [NAME …]`, which is what `make miniatures` runs.

Text is the standard library's own, exercises come from their train split, and a tenth of both (`is_heldout`, seed 0)
is never seen. One thread, one seed: the same versions of Python and torch give the same bytes. It ends with a line a
model: held-out bits per byte and the share of right answers in each kind of exercise.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tasks.exercises import KINDS, Exercise, generate, is_correct
from tasks.exercises.holdout import Message, conversation_text, is_heldout
from tasks.exercises.library_text import library_documents
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer
from tasks.models.miniature_tokenizers import LLAMA, QWEN, TokenizerFamily, train_tokenizer, write_tokenizer

MINIATURES = Path(__file__).parent / "miniatures"
CONTEXT = 256
MAX_POSITIONS = 512
HELDOUT_FRACTION = 0.1
EXERCISES_PER_KIND = 6000
"""Learned from, a third of each difficulty; the spaces of the smaller kinds hold some 8,000."""
_IGNORED = -100


@dataclass(frozen=True)
class Miniature:
    """A model's shape, what it reads and for how long."""

    family: TokenizerFamily
    hidden: int
    layers: int
    heads: int
    intermediate: int
    tied: bool
    text: tuple[str, ...]
    """Parts of the library's text ("topic", "module"); one named twice is read twice as often."""
    text_rows: int
    """Rows of CONTEXT tokens of text in a step."""
    weights: dict[str, float]
    """How often each kind of exercise is drawn."""
    text_steps: int
    """Steps on text alone, before any conversation."""
    steps: int
    """Steps on text and conversations."""
    chats_per_step: int = 32
    matrix_rate: float = 0.02
    vector_rate: float = 4e-3
    start: str | None = None
    """The miniature whose weights it starts from."""


_LETTERS_FIRST = {"reverse": 3.0, "repeat": 3.0, "successor": 3.0, "sort": 1.0, "swap": 1.0, "add": 1.0}
_NUMBERS_FIRST = {"reverse": 1.0, "repeat": 1.0, "successor": 1.0, "sort": 3.0, "swap": 3.0, "add": 3.0}
# Sorting is what two layers learn first: drawn as often as the rest, it would leave the student nothing to learn.
_LITTLE_SORT = {"reverse": 1.0, "repeat": 1.0, "successor": 1.9, "sort": 0.3, "swap": 1.3, "add": 2.2}
_BOTH = ("topic", "module")
SPECS: dict[str, Miniature] = {
    "llama-teacher": Miniature(LLAMA, 128, 3, 4, 384, False, ("topic", "topic", "module"), 8, _LETTERS_FIRST, 0, 1100),
    "qwen-teacher": Miniature(QWEN, 128, 3, 4, 384, True, ("topic", "module", "module"), 8, _NUMBERS_FIRST, 0, 1100),
    "qwen-base": Miniature(QWEN, 96, 2, 4, 256, True, _BOTH, 2, _LITTLE_SORT, 250, 0),
    "qwen-student": Miniature(QWEN, 96, 2, 4, 256, True, _BOTH, 2, _LITTLE_SORT, 0, 480, start="qwen-base"),
}


def seen_documents(only: str) -> list[str]:
    """The library's text without what is held out."""
    return [text for text in library_documents(only=only) if not is_heldout(text, HELDOUT_FRACTION, 0)]


def heldout_documents() -> list[str]:
    """The held-out tenth of the library's text."""
    return [text for text in library_documents() if is_heldout(text, HELDOUT_FRACTION, 0)]


def _as_document(exercise: Exercise) -> str:
    return conversation_text([Message("user", exercise.prompt), Message("assistant", exercise.answer)])


def seen_exercises(kind: str) -> list[Exercise]:
    """Training exercises without those that a corpus of seed 0 holds out."""
    return [
        exercise
        for exercise in generate(kind, "train", EXERCISES_PER_KIND, seed=0)
        if not is_heldout(_as_document(exercise), HELDOUT_FRACTION, 0)
    ]


def _family_tokenizer(family: TokenizerFamily) -> Tokenizer:
    chats = [f"{item.prompt}\n{item.answer}" for kind in KINDS for item in seen_exercises(kind)[:1000]]
    headers = ["system", "user", "assistant", "Today: 26 Jul 2024"] * 1000
    return train_tokenizer(family, seen_documents("") + chats + headers)


def build_model(spec: Miniature, tokenizer: Tokenizer, family: TokenizerFamily) -> PreTrainedModel:
    """Random weights in the spec's shape."""
    shape: dict[str, Any] = {
        "vocab_size": family.num_rows,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads // 2,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": tokenizer.token_to_id(family.bos) if family.bos else None,
        "eos_token_id": tokenizer.token_to_id(family.end_of_turn),
        "pad_token_id": tokenizer.token_to_id(family.pad),
    }
    if family is LLAMA:
        return LlamaForCausalLM(LlamaConfig(**shape))
    return Qwen2ForCausalLM(Qwen2Config(**shape))


def _text_batches(tokenizer: Tokenizer, spec: Miniature, rng: random.Random) -> Iterator[torch.Tensor]:
    """(rows, CONTEXT) int64 without end: documents one after another, in a new order each round."""
    texts = [text for part in spec.text for text in seen_documents(part)]
    documents = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    end = tokenizer.token_to_id(spec.family.end_of_text)
    while True:
        rng.shuffle(documents)
        stream = [token for ids in documents for token in [*ids, end]]
        size = spec.text_rows * CONTEXT
        for start in range(0, len(stream) - size, size):
            yield torch.tensor(stream[start : start + size]).view(spec.text_rows, CONTEXT)


def _random_date(rng: random.Random) -> str:
    month = rng.choice(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
    return f"{rng.randrange(1, 29):02d} {month} {rng.randrange(2023, 2030)}"


def _chat_batches(
    tokenizer: PreTrainedTokenizerFast, spec: Miniature, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """((rows, T) ids, (rows, T) labels) without end, right-padded; labels cover the answer and its end token."""
    pools = {kind: seen_exercises(kind) for kind in KINDS}
    end = tokenizer.eos_token_id
    while True:
        kinds = rng.choices(list(spec.weights), list(spec.weights.values()), k=spec.chats_per_step)
        rows = []
        for kind in kinds:
            exercise = rng.choice(pools[kind])
            prompt = render(tokenizer, exercise.prompt, _random_date(rng))
            rows.append((prompt, [*tokenizer.encode(exercise.answer, add_special_tokens=False), end]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), _IGNORED)
        for index, (prompt, answer) in enumerate(rows):
            length = len(prompt) + len(answer)
            ids[index, :length] = torch.tensor(prompt + answer)
            labels[index, len(prompt) : length] = torch.tensor(answer)
        yield ids, labels


def render(tokenizer: PreTrainedTokenizerFast, prompt: str, date: str) -> list[int]:
    """Ids of a conversation that waits for the assistant's first answer."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, date_string=date
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def _loss_sum(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Summed cross-entropy of the labelled tokens in nats; logits only where there is a label, no padding rows."""
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != _IGNORED
    logits = model.lm_head(hidden[wanted])[:, :num_tokens]
    return functional.cross_entropy(logits, targets[wanted], reduction="sum")


def _optimisers(spec: Miniature, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases; each group keeps its peak rate."""
    layers = {id(parameter) for parameter in model.model.layers.parameters() if parameter.dim() == 2}
    matrices = [parameter for parameter in model.parameters() if id(parameter) in layers]
    others = [parameter for parameter in model.parameters() if id(parameter) not in layers]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=spec.matrix_rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=spec.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def train(spec: Miniature, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """A linear warm-up, then a cosine to a tenth; text and answers weigh alike in a step."""
    rng = random.Random(f"{name}/data")
    text = _text_batches(tokenizer.backend_tokenizer, spec, rng)
    chats = _chat_batches(tokenizer, spec, rng)
    optimisers = _optimisers(spec, model)
    total = spec.text_steps + spec.steps
    warmup = max(1, total // 20)
    started = time.process_time()
    model.train(True)
    for step in range(total):
        scale = min(1.0, (step + 1) / warmup) * (0.55 + 0.45 * math.cos(math.pi * step / total))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * scale
        text_ids = next(text)
        text_loss = _loss_sum(model, text_ids, text_ids, spec.family.num_tokens) / text_ids[:, 1:].numel()
        torch.autograd.backward(text_loss)
        chat_value = math.nan
        if step >= spec.text_steps:
            ids, labels = next(chats)
            chat_loss = _loss_sum(model, ids, labels, spec.family.num_tokens) / (labels[:, 1:] != _IGNORED).sum()
            torch.autograd.backward(chat_loss)
            chat_value = chat_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if step % 50 == 49:
            seconds = time.process_time() - started
            print(
                f"{name} step {step + 1}/{total} text {text_loss.item():.3f} chat {chat_value:.3f} {seconds:.0f} s",
                flush=True,
            )
    model.train(False)


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[str], rows: int) -> float:
    """Over the first CONTEXT tokens of `rows` documents; the first token of a text without BOS is not counted."""
    nats, num_bytes = 0.0, 0
    for document in documents[:rows]:
        ids = tokenizer.encode(document)[:CONTEXT]
        num_bytes += len(str(tokenizer.decode(ids[1:])).encode())
        batch = torch.tensor([ids])
        nats += _loss_sum(model, batch, batch, len(tokenizer)).item()
    return nats / math.log(2) / num_bytes


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, exercises: list[Exercise], date: str) -> float:
    """Share of exercises that greedy decoding answers right."""
    groups: dict[int, list[tuple[list[int], Exercise]]] = {}
    for exercise in exercises:
        prompt = render(tokenizer, exercise.prompt, date)
        groups.setdefault(len(prompt), []).append((prompt, exercise))
    num_right = 0
    generate_ids: Any = model.generate
    for length, members in groups.items():
        batch = torch.tensor([prompt for prompt, _ in members])
        output = generate_ids(batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=40)
        for tokens, (_, exercise) in zip(output[:, length:].tolist(), members, strict=True):
            end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
            num_right += end < len(tokens) and is_correct(exercise, str(tokenizer.decode(tokens[:end])))
    return num_right / len(exercises)


def report(directory: Path, split: str = "test", count: int = 60) -> dict[str, float]:
    """Held-out bits per byte and accuracy by kind of a saved miniature."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model_class = LlamaForCausalLM if "llama" in directory.name else Qwen2ForCausalLM
    model = model_class.from_pretrained(directory, dtype=torch.float32)
    model.train(False)
    values = {"bits_per_byte": bits_per_byte(model, tokenizer, heldout_documents(), 200)}
    for kind in KINDS:
        values[kind] = accuracy(model, tokenizer, generate(kind, split, count, seed=1), "26 Jul 2024")  # type: ignore[arg-type]
    return {name: round(value, 3) for name, value in values.items()}


def build(name: str) -> Path:
    """Trains one miniature and puts it in its place."""
    spec = SPECS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / name
        directory.mkdir()
        write_tokenizer(_family_tokenizer(spec.family), spec.family, directory, MAX_POSITIONS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        if spec.start is None:
            model = build_model(spec, tokenizer.backend_tokenizer, spec.family)
        else:
            model = Qwen2ForCausalLM.from_pretrained(MINIATURES / spec.start, dtype=torch.float32)
        train(spec, model, tokenizer, name)
        generation = (directory / "generation_config.json").read_bytes()
        save_causal_lm(model.bfloat16(), directory)
        (directory / "generation_config.json").write_bytes(generation)
        save_tokenizer(tokenizer, directory)
        shutil.rmtree(MINIATURES / name, ignore_errors=True)
        shutil.copytree(directory, MINIATURES / name)
    return MINIATURES / name


def main() -> None:
    """Builds the named miniatures, or all of them in the order in which they depend on each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SPECS)}; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in arguments.names or SPECS:
        directory = build(name)
        print(json.dumps({"name": name, **report(directory)}), flush=True)


if __name__ == "__main__":
    main()
