"""What a forecast takes for granted where nothing is measured yet. Each can be changed: --assume name=value."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.planning.hardware import Hardware


class Assumptions(Frozen):
    """Numbers that no config says. Tokens are of a large vocabulary (100,000 or more)."""

    tokens_per_text: float = Field(1030, gt=0)
    """Of a web document; FineWeb-Edu's sample-10BT has 10e9 tokens in 9.7 million."""
    tokens_per_chat: float = Field(900, gt=0)
    """Of an instruction with its answer."""
    tokens_per_exercise: float = Field(40, gt=0)
    """Of a generated exercise, in a vocabulary of 1,024."""
    bytes_per_token: float = Field(4.4, gt=0)
    """Of English text; at 1,024 tokens it is half of that."""
    text_targets: float = Field(1.0, gt=0, le=1)
    chat_targets: float = Field(0.75, gt=0, le=1)
    """Part of a document's tokens that are targets of the training."""
    length_spread: float = Field(1.6, ge=1)
    """Mean square of a document's length over its squared mean, as attention is quadratic. 1: all alike."""
    dataset_rows: float = Field(75_000, gt=0)
    """Of a data set of instructions that is taken whole."""
    corpus_bytes_per_token: float = Field(2.8, gt=0)
    """Of a stored corpus."""
    imported_bytes_per_token: float = Field(150, gt=0)
    """Of a published set of logits."""
    imported_row_tokens: float = Field(1000, gt=0)
    """Of a document of such a set."""
    adaptive_entries: float = Field(47, gt=0)
    """Entries that a position keeps at probability 0.001; 44 to 51 were measured on a small teacher."""
    invented_fraction: float = Field(0.15, ge=0, le=1)
    """Part of a donor's tokens that the student lacks; 18,434 of Llama 3's 128,256 against Qwen2.5."""

    training_utilisation: float = Field(0.40, gt=0, le=1)
    """Of the peak of its arithmetic, computing again for gradient checkpointing included; traffic comes on top."""
    forward_utilisation: float = Field(0.35, gt=0, le=1)
    """The same of a dump and of an evaluation's prompts."""
    surgeon_utilisation: float = Field(0.20, gt=0, le=1)
    cpu_utilisation: float = Field(0.50, gt=0, le=1)
    """Of a core's peak, in place of all of these."""
    memory_utilisation: float = Field(0.40, gt=0, le=1)
    """Of the memory's bandwidth, where answers are written: transformers starts every kernel from Python."""
    link_utilisation: float = Field(0.70, gt=0, le=1)
    """Of the bandwidth to other devices, in the node or beyond it."""
    padding: float = Field(0.04, ge=0, lt=1)
    """Part of the tokens of a forward pass that is padding."""
    corpus_tokens_per_second: float = Field(150_000, gt=0)
    """Of a tokenizer's process."""
    served_tokens_per_second: float = Field(4000, gt=0)
    """Of a server that runs the teacher, with the log-probabilities of its prompts; a guess."""
    encoded_tokens_per_second: float = Field(300_000, gt=0)
    """Of the thread that compresses a dump's shards."""
    hub_bytes_per_second: float = Field(300e6, gt=0)
    store_bytes_per_second: float = Field(1e9, gt=0)
    """Between a node and the store."""
    disk_bytes_per_second: float = Field(2e9, gt=0)
    start_seconds: float = Field(120, ge=0)
    """From a launch to the first pass on accelerators, weights apart."""
    cpu_start_seconds: float = Field(4, ge=0)

    prompt_tokens: float = Field(1200, gt=0)
    """Of an item of a benchmark, all its few-shot examples and choices counted."""
    longest_prompt_tokens: float = Field(3000, gt=0)
    """Of the longest item with its answer, which decides an evaluation's memory."""
    answer_tokens: float = Field(400, gt=0)
    """Of an item that is answered in text."""
    items_per_task: float = Field(1000, gt=0)
    """Of a benchmark that the table in tasks/planning/generation.py does not know."""
    usd_per_gb_month: float = Field(0.023, ge=0)
    """Of what is stored."""


def assumptions(changes: Iterable[str] = ()) -> Assumptions:
    """The defaults with `name=value` put in.

    Raises:
        BadInputError: no such name, or a value out of its range.
    """
    given: dict[str, str] = {}
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals or name not in Assumptions.model_fields:
            raise BadInputError(
                f"--assume {text!r} must be name=value with one of the names {', '.join(Assumptions.model_fields)}"
            )
        given[name] = value
    try:
        return Assumptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"--assume {first['loc'][0]}: {first['msg']}; correct the value") from error


def utilisation_of(hardware: Hardware, accelerators: float, given: Assumptions) -> float:
    """Part of the peak that is reached: `accelerators` on one, the processor's own on a core."""
    return accelerators if hardware.accelerator else given.cpu_utilisation


def start_seconds(given: Assumptions, hardware: Hardware | None = None) -> float:
    """From a launch to the work; None: a stage without a device of its own."""
    return given.start_seconds if hardware is not None and hardware.accelerator else given.cpu_start_seconds
