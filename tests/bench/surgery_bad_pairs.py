"""Pairs of models that cannot work together: each must be refused with a sentence, by the stage's own worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError, WorkerFailedError
from tasks.fuse import stage as fuse_stage
from tasks.modeling.tokenizer_files import save_tokenizer
from tasks.models import stage as models_stage
from tasks.runtime.declare import Step
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import BAD_PAIRS
from tests.bench.swap_folder import folder
from tests.bench.swap_steps import (
    SPECIAL_TOKENS,
    make,
    model_in,
    random_model,
    smollm2,
    step_of,
    tokenizer,
    transplant,
    write_random_model,
)

WIDTH = 8
ROWS = 151_680
"""Of both models of which only the tokenizers differ; Qwen's 151,665, filled up."""


@dataclass(frozen=True)
class BadPair:
    """A step that must be refused."""

    step: Step
    for_this: str
    """Part of the sentence that only this refusal has."""


def _bad_pairs() -> Iterator[Measured]:
    pairs = bad_pairs()
    assert len(pairs) == BAD_PAIRS
    refusals = {name: _refusal(pair.step) for name, pair in pairs.items()}
    accepted = {name: said for name, said in refusals.items() if not is_refused(said, pairs[name].for_this)}
    yield Measured(
        "surgery.bad_pairs_accepted",
        len(accepted),
        "; ".join(f"{name}: {said or 'not refused'}" for name, said in (accepted or refusals).items()),
        BAD_PAIRS,
    )


def bad_pairs() -> dict[str, BadPair]:
    """By what is wrong."""
    special_tokens = SPECIAL_TOKENS["qwen", "llama"]
    untied = model_in(random_model("qwen", WIDTH, 1, tied=False), "untied-qwen")
    tied = model_in(random_model("llama", WIDTH, 2), "tied-llama")
    narrow = model_in(random_model("qwen", WIDTH, 3), "narrow-qwen")
    as_many_rows = model_in(random_model("llama", WIDTH, 4, rows=ROWS), "llama-as-many-rows")
    weight = {"parameters": {"weight": 1}}
    merge = {"merge_method": "linear", "base_model": None, "models": {"base": weight, "one": weight}}
    letters = {"method": "composed", "special_tokens": {"<|xy|>": "<|ab|>"}}
    return {
        "no shared tokens": BadPair(
            transplant("no-shared", _model_of_letters("ab"), _model_of_letters("xy"), letters), "share no tokens"
        ),
        "missing special tokens": BadPair(
            transplant("no-map", smollm2(), tokenizer("llama"), {"method": "composed"}), "special_tokens does not say"
        ),
        "other tokenizer, as many rows": BadPair(
            step_of(
                fuse_stage.STAGE,
                "other-tokenizer",
                {"recipe": merge},
                **{"base": narrow, "branch.one": as_many_rows},
            ),
            "different tokenizers",
        ),
        "tied donor, untied student": BadPair(
            transplant("tied-donor", untied, tied, {"special_tokens": special_tokens}), "head is its embedding"
        ),
        "k above the shared tokens": BadPair(
            transplant("k-too-large", *_miniatures(), {"k": 1024, "special_tokens": special_tokens}),
            "recipe.k asks for 1024",
        ),
    }


def is_refused(said: str | None, for_this: str) -> bool:
    """For what is wrong, in one line that says after a semicolon what to do."""
    return said is not None and for_this in said and "\n" not in said and "; " in said


def _refusal(step: Step) -> str | None:
    """What the worker says; None if it makes the model, or ends otherwise."""
    try:
        make(step)
    except BadInputError as refused:
        return str(refused)
    except WorkerFailedError as failed:
        # A traceback, of which one line is enough.
        return f"{type(failed).__name__}: {str(failed).splitlines()[-1]}\n"
    return None


def _model_of_letters(letters: str) -> Step:
    """A random model with the tokens of these letters and an end, and no other."""
    target = folder() / f"random-letters-{letters}"
    if not (target / "tokenizer.json").is_file():
        vocabulary = folder() / f"letters-{letters}"
        names = [f"Ġ{letters[0]}", *letters]
        backend = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        end = f"<|{letters}|>"
        made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)
        save_tokenizer(made, vocabulary)
        write_random_model(vocabulary, target, WIDTH, 0)
    return model_in(target, f"letters-{letters}")


def _miniatures() -> tuple[Step, Step]:
    """The student of the demonstration, with Qwen's names of special tokens, and its Llama teacher."""
    names = ("qwen-student", "llama-teacher")
    sources = [models_stage.MiniatureSource(name=name).with_identity() for name in names]
    student, donor = (
        step_of(models_stage.STAGE, name, {"recipe": {"source": source}})
        for name, source in zip(names, sources, strict=True)
    )
    return student, donor


MEASUREMENTS = [Measurement("surgery_bad_pairs", _bad_pairs, ("surgery.bad_pairs_accepted",))]
