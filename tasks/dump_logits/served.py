"""A teacher behind a server, as a profile declares it: what it is (hashed), and where it answers (never hashed)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tasks.artifacts.frozen import Frozen
from tasks.dump_logits.teacher_recipe import TeacherRecipe
from tasks.runtime.endpoint import BaseUrl, KeyVariable


class ServedTeacher(Frozen):
    """A teacher that another program computes. These words are recorded with the logits; nothing is loaded by them."""

    kind: Literal["served"]
    dtype: Literal["float32", "bfloat16", "float16"]
    """In what the server computes, as it was started."""
    quantisation: str | None = None
    """How its weights are quantised, such as fp8."""
    engine: str = Field("vllm", min_length=1)
    """What computes it, such as vllm-0.11.0: another version's kernels give other last digits."""


class TeacherServer(Frozen):
    """An OpenAI-compatible server that gives log-probabilities of a prompt's own tokens."""

    base_url: BaseUrl
    model: str | None = None
    """The name that it serves the teacher under; None where it serves one model alone."""
    protocol: Literal["prompt_logprobs", "echo"] = "prompt_logprobs"
    """prompt_logprobs: vLLM's own field. echo: `echo` with `logprobs`, from a server that names tokens by their ids
    (return_tokens_as_token_ids)."""
    api_key_env: KeyVariable | None = None
    """Name of the environment variable with the key; None for a server that asks for none."""
    concurrency: int = Field(16, ge=1)
    """Documents that each process has asked for and not stored. An answer of 4,096 tokens with 128 entries each is
    35 MB of JSON."""
    timeout_seconds: float = Field(600, gt=0)
    """For one try of one document, its time in the server's queue included."""
    max_retries: int = Field(20, ge=0)
    """Further tries after a 408, 409, 429, 5xx, lost connection or time-out, with pauses that grow to 8 s."""


def _kind(value: Any) -> str:
    given = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "loaded" if given is None else "served"


AnyTeacher = Annotated[
    Annotated[TeacherRecipe, Tag("loaded")] | Annotated[ServedTeacher, Tag("served")], Discriminator(_kind)
]
"""With `kind: served` another program's; without a kind one that the dump loads itself."""
