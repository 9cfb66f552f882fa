"""Which layers of SmolLM2-135M-Instruct can go: `python -m tests.bench.layers`, ten minutes on two cores.

Greedily: of the layers that are left, without the first two and the last, the one goes without which prose needs the
fewest bits a byte. It prints the five cheapest of each round, and prose, code and digits of what is left.
"""

from __future__ import annotations

import os

import torch
from torch.nn import ModuleList
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.modeling.document_bits import document_bits
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tests.bench.swap_texts import measured_texts
from tests.bench.teachers import teacher_directory

ROUNDS = 4
_SHOWN = 5


def rate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layers: list[torch.nn.Module], kind: str) -> float:
    """Bits a byte of one kind of text by the model with these of its layers."""
    model.model.layers = ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    texts = measured_texts()[kind]
    found = document_bits(model, tokenizer, texts, window_tokens=1024, batch_size=8, after_batch=lambda: None)
    return sum(each.bits for each in found) / sum(each.num_bytes for each in found)


def main() -> None:
    """Prints one line a round."""
    torch.set_num_threads(os.cpu_count() or 1)
    directory = teacher_directory("49k")
    model, tokenizer = load_causal_lm(directory, dtype=torch.float32), load_tokenizer(directory)
    layers = list(model.model.layers)
    left = list(range(len(layers)))

    def of(kept: list[int], kind: str) -> float:
        return rate(model, tokenizer, [layers[layer] for layer in kept], kind)

    def whole() -> str:
        return ", ".join(f"{kind} {of(left, kind):.3f}" for kind in ("prose", "code", "digits"))

    print(f"{len(left)} layers: {whole()}", flush=True)
    for _ in range(ROUNDS):
        without = sorted((of([kept for kept in left if kept != layer], "prose"), layer) for layer in left[2:-1])
        left.remove(without[0][1])
        cheapest = ", ".join(f"{layer} {bits:.3f}" for bits, layer in without[:_SHOWN])
        print(f"{len(left)} layers, without {without[0][1]} (prose without {cheapest}): {whole()}", flush=True)


if __name__ == "__main__":
    main()
