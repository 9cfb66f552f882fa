"""From a server's answer about one document to truncated distributions.

The server's log-probabilities are normalised over its whole vocabulary, so what its entries leave of 1 is the tail: the
one number here that is a difference. Float32 log-probabilities sum to 1 within 1e-6, so a tail below that is noise.

Letters: T tokens, P = T − 1 positions, W entries that the server gave, K entries of the support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.truncate import kept_counts
from tasks.logits.positions import Float64, Positions
from tasks.logits.schema import AdaptiveSupport, TopKSupport

NEVER = -9999.0
"""What vLLM sends for −inf, which JSON does not know."""
MAX_EXCESS = 1e-3
"""By how much entries may sum to more than 1: float32 makes 1e-6, and rounding to bfloat16 1e-2."""
MAX_BEYOND = 0.01
"""Mass of ids beyond the tokenizer's, which take no part in a store. A trained model gives them next to nothing."""
_ID_PREFIX = "token_id:"

Protocol = Literal["prompt_logprobs", "echo"]


@dataclass(frozen=True)
class PromptLogprobs:
    """What a server said of a document's tokens, natural logarithms."""

    ids_PW: npt.NDArray[np.int64]
    """−1 where a position has fewer entries than W."""
    logprobs_PW: Float64
    gold_ids_P: npt.NDArray[np.int32]
    """The tokens that follow."""
    gold_P: Float64


def request_fields(protocol: Protocol, num_entries: int) -> dict[str, Any]:
    """What a request asks for, so that each position of the prompt comes with `num_entries` entries."""
    if protocol == "prompt_logprobs":
        return {"prompt_logprobs": num_entries}
    return {"echo": True, "logprobs": num_entries, "return_tokens_as_token_ids": True}


def parse(answer: Mapping[str, Any], protocol: Protocol, input_ids_T: npt.NDArray[np.int32]) -> PromptLogprobs:
    """Reads an answer to a request with `request_fields`.

    Raises:
        BadInputError: it lacks a position, belongs to other tokens, or names tokens by their text.
    """
    try:
        choice = answer["choices"][0]
        entries = _by_id(choice["prompt_logprobs"]) if protocol == "prompt_logprobs" else _echoed(choice["logprobs"])
    except (KeyError, IndexError, TypeError, AttributeError):
        _refuse(
            f"has no log-probabilities of the prompt's tokens; set runtime.server.protocol to what the server knows "
            f"(vLLM: prompt_logprobs), now {protocol}"
        )
    entries = entries[: len(input_ids_T)]
    if len(entries) != len(input_ids_T) or any(not entry for entry in entries[1:]):
        _refuse(
            f"has entries for {sum(map(bool, entries))} of {len(input_ids_T) - 1} predicted tokens; an old vLLM leaves "
            f"out what it has cached: start it with --no-enable-prefix-caching"
        )
    counts_P = np.array([len(entry) for entry in entries[1:]], np.int64)
    shape = (len(counts_P), int(counts_P.max(initial=0)))
    ids_PW, logprobs_PW = np.full(shape, -1, np.int64), np.full(shape, -np.inf)
    inside_PW = np.arange(shape[1]) < counts_P[:, None]
    ids_PW[inside_PW] = [token for entry in entries[1:] for token in entry]
    logprobs_PW[inside_PW] = [value for entry in entries[1:] for value in entry.values()]
    logprobs_PW[logprobs_PW <= NEVER] = -np.inf
    gold_PW = ids_PW == input_ids_T[1:, None]
    if not gold_PW.any(1).all():
        _refuse(
            f"has no entry of the document's own token at position {int(np.argmin(gold_PW.any(1)))}, as an answer "
            f"about other tokens has: the server shifts them, or puts a token of its own in front"
        )
    gold_P = np.where(gold_PW, logprobs_PW, -np.inf).max(1, initial=-np.inf)
    return PromptLogprobs(ids_PW, logprobs_PW, input_ids_T[1:], gold_P)


def _by_id(entries: Sequence[Mapping[str, Any] | None]) -> list[dict[int, float]]:
    """vLLM's list: None for the first token, then {id: {logprob, …}} with the likeliest and the token itself."""
    return [
        {} if entry is None else {int(token): float(value["logprob"]) for token, value in entry.items()}
        for entry in entries
    ]


def _echoed(logprobs: Mapping[str, Any]) -> list[dict[int, float]]:
    """OpenAI's lists: the tokens, each one's log-probability, and {token: log-probability} of the likeliest."""
    tokens = logprobs["tokens"]
    if not all(str(token).startswith(_ID_PREFIX) for token in tokens):
        _refuse(
            f"names tokens by their text, such as {tokens[0]!r}, from which ids cannot be told; use a server that "
            f"knows return_tokens_as_token_ids"
        )
    found: list[dict[int, float]] = []
    for token, own, likeliest in zip(tokens, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        entry = {_id(name): float(value) for name, value in (likeliest or {}).items()}
        if own is not None:
            entry[_id(token)] = float(own)
        found.append(entry)
    return found


def _id(token: str) -> int:
    return int(token.removeprefix(_ID_PREFIX))


def positions(said: PromptLogprobs, support: TopKSupport | AdaptiveSupport, vocab_size: int) -> Positions:
    """The P positions of a document, over the tokenizer's `vocab_size` ids.

    Raises:
        BadInputError: there are fewer entries than the support keeps, or they are no log-probabilities over the whole
            vocabulary.
    """
    outside_PW = said.ids_PW >= vocab_size
    beyond_P = np.exp(np.where(outside_PW, said.logprobs_PW, -np.inf)).sum(1)
    if (beyond_P > MAX_BEYOND).any():
        _refuse(
            f"gives {beyond_P.max():.2g} of a position's mass to ids that the tokenizer does not have; serve the model "
            f"that belongs to the input teacher"
        )
    # By (log-probability descending, id ascending); what is no entry comes last.
    logprobs_PW = np.where(outside_PW, -np.inf, said.logprobs_PW - np.log1p(-beyond_P)[:, None])
    width = support.width
    order_PK = np.lexsort((said.ids_PW, -logprobs_PW), axis=1)[:, :width]
    ids_PK, logprobs_PK = (np.take_along_axis(values, order_PK, 1) for values in (said.ids_PW, logprobs_PW))
    mass_P = np.exp(logprobs_PK).sum(1)
    given_P = (~np.isneginf(logprobs_PW) | outside_PW).sum(1)
    # Fewer are all that there are only where they carry all mass.
    if (short_P := (given_P < min(width, vocab_size)) & (mass_P < 1 - MAX_EXCESS)).any():
        _refuse(
            f"has {int(given_P[short_P].min())} entries at a position where recipe.support keeps {width}; let the "
            f"server give more (vLLM: --max-logprobs {width}), or lower recipe.support"
        )
    if (mass_P > 1 + MAX_EXCESS).any():
        _refuse(
            f"has entries that sum to {mass_P.max():.4g} as probabilities: they are tempered, rounded or no "
            f"log-probabilities over the whole vocabulary; let the server send raw ones (vLLM: --logprobs-mode "
            f"raw_logprobs)"
        )
    excess_P = np.log(np.maximum(mass_P, 1.0))
    logprobs_PK = logprobs_PK - excess_P[:, None]
    gold_P = said.gold_P - np.log1p(-beyond_P) - excess_P
    dropped_P = np.zeros(len(mass_P))
    if isinstance(support, AdaptiveSupport) and len(mass_P):
        kept_P = kept_counts(torch.from_numpy(np.exp(logprobs_PK)), support).numpy()
        left_out_PK = np.arange(logprobs_PK.shape[1]) >= kept_P[:, None]
        dropped_P = np.exp(np.where(left_out_PK, logprobs_PK, -np.inf)).sum(1)
        logprobs_PK = np.where(left_out_PK, -np.inf, logprobs_PK)
    ids_PK = np.where(np.isneginf(logprobs_PK), -1, ids_PK)
    with np.errstate(divide="ignore"):
        tail_P = np.log(np.maximum(1 - mass_P, 0.0) + dropped_P)
    # A following token that is no entry is part of the tail, and known where the difference is noise.
    gold_kept_P = (ids_PK == said.gold_ids_P[:, None]).any(1)
    tail_P = np.where(gold_kept_P, tail_P, np.maximum(tail_P, gold_P))
    return _laid_out(ids_PK, logprobs_PK, tail_P, gold_P, width)


def _laid_out(
    ids_PK: npt.NDArray[np.int64], logprobs_PK: Float64, tail_P: Float64, gold_P: Float64, width: int
) -> Positions:
    room = Positions.empty(len(ids_PK), width, 0)
    given = ids_PK.shape[1]
    room.topk_ids_PK[:, :given], room.topk_ids_PK[:, given:] = ids_PK, -1
    room.topk_logprobs_PK[:, :given], room.topk_logprobs_PK[:, given:] = logprobs_PK, -np.inf
    room.tail_logprob_P[:], room.gold_logprob_P[:] = tail_P, gold_P
    return room


def _refuse(fault: str) -> NoReturn:
    raise BadInputError(f"the teacher server's answer {fault}")
