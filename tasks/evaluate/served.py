"""Models behind OpenAI-compatible servers, compared under names of their own. No torch.

What changes the numbers is recipe: which model, what is pinned of it, by which interface it is asked. Where it answers
and how hard it is pressed is runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.modeling.compared_models import check_names
from tasks.runtime.endpoint import BaseUrl, KeyVariable


class ServedModel(Frozen):
    """A model as its server knows it."""

    model: str = Field(min_length=1)
    revision: str = Field(min_length=1)
    """What is deployed there, such as a commit and a quantisation. Nobody can check it from here: it is taken at its
    word, is part of the key, and stands in the results."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages, which the server's own template renders, and has answers only. `completions` sends token
    ids, and can have the log-probabilities of a prompt, which multiple choice needs."""
    tokenizer: str | None = None
    """For `completions`: the model of this comparison that has the same tokenizer and chat template."""
    context_tokens: int | None = Field(None, ge=2)
    """For `completions`: tokens of the longest prompt and its answer that the server takes."""
    chat_template_kwargs: dict[str, str | bool | int] = Field(default_factory=dict)
    """For `chat`: what the server's template is given besides the messages, such as date_string or enable_thinking."""

    @model_validator(mode="after")
    def _whole(self) -> ServedModel:
        given = (self.tokenizer is not None, self.context_tokens is not None)
        if self.api == "completions" and not all(given):
            raise ValueError("api: completions needs `tokenizer` and `context_tokens`; give both, or take api: chat")
        if self.api == "chat" and any(given):
            raise ValueError("`tokenizer` and `context_tokens` are for api: completions; leave them out")
        if self.api == "completions" and self.chat_template_kwargs:
            raise ValueError("`chat_template_kwargs` is for api: chat; leave it out")
        return self


class ModelServer(Frozen):
    """Where a served model answers."""

    base_url: BaseUrl
    api_key_env: KeyVariable | None = None
    """Name of the environment variable with the key; None for a server that asks for none."""
    concurrency: int = Field(8, ge=1)
    timeout_seconds: int = Field(300, ge=1)
    """For one try of one call."""
    max_tries: int = Field(6, ge=1)
    """Of a call, 1 to 10 seconds apart."""


def check_served(served: Mapping[str, ServedModel], models: Collection[str]) -> None:
    """Whether served models have names of their own, and the tokenizers that they name are there.

    Raises:
        BadInputError: one has not.
    """
    check_names(served)
    for name, each in served.items():
        if name in models:
            raise BadInputError(
                f"evaluate.recipe.served has the model {name}, and so has the run; give the served one another name"
            )
        if each.tokenizer is not None and each.tokenizer not in models:
            raise BadInputError(
                f"evaluate.recipe.served.{name}.tokenizer is {each.tokenizer!r}, which is not among the models "
                f"{', '.join(sorted(models))}; name one of them"
            )
