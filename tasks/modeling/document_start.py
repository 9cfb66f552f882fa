"""The token that a model's documents begin with, for whoever measures how well it predicts text.

A tokenizer's BOS need not be it. SmolLM2-135M-Instruct names <|im_start|>, the token that opens every chat turn, while
its documents began with <|endoftext|>, which its tokenizer only lists as `unk_token`. That is more than the first
word: the first token is where attention rests, and after the wrong one every later token is predicted worse. Over the
texts of bits_per_byte.py SmolLM2 needs 1.143, 0.840, 1.555 and 2.307 bits a byte (prose, code, digits, other scripts)
after <|im_start|>, and 1.028, 0.648, 1.488 and 2.124 after <|endoftext|>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import real_vocab_size

MARGIN = 0.005
"""By how much another token must lower the bits before it takes the place of the BOS, so that no rounding decides.
SmolLM2's gain is 8 %."""
_PROBES = (
    "The train was late again, so we walked along the river until the lamps were lit and talked about the winter.",
    "A good map shows where the roads are. A better one also shows which of them can be used after heavy rain.",
    "When the bell rang, the teacher closed the window, counted the books on the table and wished everyone a good day.",
)


def start_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that a text is conditioned on: the tokenizer's BOS, or the config's where it has none, or its end token;
    unless after another special token that the tokenizer names (end, padding, unknown) a few sentences take less bits,
    by MARGIN.

    Raises:
        BadInputError: the tokenizer has neither BOS nor end token.
    """
    num_tokens = real_vocab_size(tokenizer)
    bos = model.config.get_text_config().bos_token_id
    return likeliest_start(tokenizer, bos, lambda start, texts: _nats(model, start, texts, num_tokens))


def likeliest_start(
    tokenizer: PreTrainedTokenizerFast,
    config_bos: int | None,
    nats_after: Callable[[int, Sequence[Sequence[int]]], float],
) -> int:
    """As start_token, of a model that is asked by `nats_after`(start, texts): what token ids take in all, each after
    this start.

    Raises:
        BadInputError: the tokenizer has neither BOS nor end token.
    """
    named = [tokenizer.bos_token_id, config_bos, tokenizer.eos_token_id]
    first = next((token for token in named if token is not None), None)
    if first is None:
        raise BadInputError("the tokenizer has neither a BOS nor an end token, so that no text can be started; set one")
    num_tokens = real_vocab_size(tokenizer)
    others = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    candidates = [int(first), *(int(token) for token in others if token is not None and token < num_tokens)]
    candidates = list(dict.fromkeys(candidates))
    if len(candidates) == 1:
        return candidates[0]
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]
    nats = {token: nats_after(token, texts) for token in candidates}
    best = min(candidates, key=nats.__getitem__)
    # Not a number compares false: a broken model keeps its BOS, and whoever measures it says what is wrong.
    return best if nats[best] < (1 - MARGIN) * nats[candidates[0]] else candidates[0]


@torch.inference_mode()
def _nats(model: PreTrainedModel, start: int, texts: Sequence[Sequence[int]], num_tokens: int) -> float:
    nats = 0.0
    for text in texts:
        ids_T = torch.tensor([start, *text], device=model.device)
        logits_PV = model(ids_T[None], use_cache=False).logits[0, :-1, :num_tokens].float()
        nats += float(cross_entropy(logits_PV, ids_T[1:], reduction="sum"))
    return nats
