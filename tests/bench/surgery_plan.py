"""Plans between the real vocabularies of Llama 3.1 and Qwen2.5, held against a recount from the packages' files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.models.packaged_tokenizer import llama_3_1_specials
from tasks.models.stage import TokenizerSource
from tasks.surgeon.plan import PARTS, TransplantPlan, plan_transplant
from tasks.surgeon.stage import TransplantRecipe
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import DIRECTIONS
from tests.bench.swap_recount import (
    RawVocabulary,
    counted_kinds,
    merged_kinds,
    read_llama,
    read_tokenizer_json,
    shared_pairs,
)
from tests.bench.swap_steps import SPECIAL_TOKENS, TOKENIZERS, directory_of, make, tokenizer
from tests.bench.timing import median_cpu_seconds

REPETITIONS = 3


def _plans() -> Iterator[Measured]:
    tokenizers = {name: load_tokenizer(directory_of(make(tokenizer(name)))) for name in TOKENIZERS}
    raw = raw_vocabularies()
    unexplained, differing, counted = 0, 0, 0
    seconds = {}
    for direction in DIRECTIONS:
        student, _, donor = direction.partition("_to_")
        special_tokens = SPECIAL_TOKENS[student, donor]
        plan = plan_of(tokenizers[student], tokenizers[donor], special_tokens)
        own, other = raw[student], raw[donor]
        counts = recounted(own, other, special_tokens)
        said = (
            f"{student}'s {len(own.ids())} tokens to {donor}'s {len(other.ids())}, {plan.counts['mapped']['total']} "
            f"mapped, method composed"
        )
        for what, value in (("shared", plan.counts["shared"]), ("invented", plan.counts["composed"])):
            by_kind = ", ".join(f"{count} {kind}" for kind, count in value.items() if kind != "total")
            yield Measured(f"surgery.plan.{direction}.{what}", value["total"], f"{by_kind}; {said}")
        unexplained += num_unexplained(plan, own, other, special_tokens)
        differing += num_differing(plan, counts)
        counted += sum(map(len, counts.values()))
        seconds[direction] = median_cpu_seconds(
            partial(plan_of, tokenizers[student], tokenizers[donor], special_tokens), REPETITIONS, warm_up=0
        )
    yield Measured(
        "surgery.plan.unexplained",
        unexplained,
        "both directions, method composed; a source counts where the raw files spell it with the same bytes, all "
        "pieces of a composed token together; a special token is mapped, shared by name or made of idle ones",
    )
    yield Measured(
        "surgery.plan.recount_differs",
        differing,
        f"of {counted} counts: 4 parts and kinds in both directions, scripts and symbols together; from "
        + " and ".join(
            f"{source['package']}'s {source.get('file', 'tokenizer.json')}" for source in TOKENIZERS.values()
        ),
    )
    yield Measured(
        "surgery.plan.cpu_seconds",
        max(seconds.values()),
        "the larger of " + ", ".join(f"{direction} {value:.2f} s" for direction, value in seconds.items()),
        REPETITIONS,
    )


def raw_vocabularies() -> dict[str, RawVocabulary]:
    """Llama 3.1's and Qwen2.5's from the installed packages."""
    llama, qwen = (TokenizerSource(**TOKENIZERS[name]) for name in ("llama", "qwen"))
    specials = dict(enumerate(llama_3_1_specials(), start=len(llama.path().read_bytes().splitlines())))
    assert qwen.drop_ids_from is not None
    return {
        "llama": read_llama(llama.path(), specials),
        "qwen": read_tokenizer_json(qwen.path(), qwen.drop_ids_from),
    }


def plan_of(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, special_tokens: dict[str, str]
) -> TransplantPlan:
    """By `composed`, so that the plan says of every token what it is made of."""
    recipe = TransplantRecipe(method="composed", special_tokens=special_tokens)
    return plan_transplant(student, donor, recipe, real_vocab_size(donor))


def recounted(own: RawVocabulary, other: RawVocabulary, special_tokens: dict[str, str]) -> dict[str, dict[str, int]]:
    """Counts of each part by kind, as a plan to come from `own` into `other` must have them."""
    pairs = shared_pairs(own, other, special_tokens)
    mapped = {token for token, name in other.special.items() if name in special_tokens}
    by_name = {name: token for token, name in own.special.items()} | {
        spelled.decode("utf-8", "replace"): token for token, spelled in own.texts.items()
    }
    kept = {*pairs.values(), *(by_name[name] for name in special_tokens.values())}
    return {
        "shared": counted_kinds(other, pairs),
        "mapped": counted_kinds(other, mapped),
        "composed": counted_kinds(other, other.ids() - pairs.keys() - mapped),
        "student_only": counted_kinds(own, own.ids() - kept),
    }


def num_differing(plan: TransplantPlan, counts: dict[str, dict[str, int]]) -> int:
    """Kinds of a part that plan and recount count otherwise."""
    differing = 0
    for part, recount in counts.items():
        planned = merged_kinds(plan.counts[part])
        differing += sum(planned.get(kind) != recount.get(kind) for kind in planned.keys() | recount.keys())
    return differing


def num_unexplained(
    plan: TransplantPlan, own: RawVocabulary, other: RawVocabulary, special_tokens: dict[str, str]
) -> int:
    """Tokens that the stored plan gives no source, several, or one of other bytes."""
    stored: dict[str, Any] = json.loads(plan.compositions())
    sources: Counter[int] = Counter(stored["approximated"])
    wrong = 0
    for part in ("shared", "mapped"):
        for token, source in zip(*stored[part], strict=True):
            sources[token] += 1
            if part == "mapped":
                named = special_tokens.get(other.special.get(token, ""))
                wrong += named is None or named.encode() != (
                    own.special.get(source, "").encode() or own.texts.get(source)
                )
            elif token in other.special:
                wrong += other.special[token] != own.special.get(source)
            else:
                wrong += other.texts[token] != own.texts.get(source)
    for name, pieces in stored["composed"].items():
        token = int(name)
        sources[token] += 1
        if token in other.texts:
            spelled = b"".join(own.texts.get(piece, b"") for piece in pieces)
            wrong += spelled != other.texts[token]
        else:
            wrong += not pieces
    assert set(stored) == set(PARTS)
    ids = other.ids()
    return wrong + sum(sources[token] != 1 or token not in ids for token in ids | sources.keys())


MEASUREMENTS = [Measurement("surgery_plan", _plans, ("surgery.plan.*",))]
