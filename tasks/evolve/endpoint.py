"""The endpoint of `autoevol` in the runtime block: where it is, how hard it is pressed, what may be spent on it."""

from __future__ import annotations

from pydantic import Field

from tasks.artifacts.frozen import Frozen
from tasks.runtime.endpoint import BaseUrl, KeyVariable


class Price(Frozen):
    """What a model's tokens cost, US dollars a million."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class Endpoint(Frozen):
    """An OpenAI-compatible endpoint and how it is treated."""

    base_url: BaseUrl
    api_key_env: KeyVariable | None = None
    """Name of the environment variable with the key; None for a server that asks for none."""
    concurrency: int = Field(8, ge=1)
    timeout_seconds: float = Field(300, gt=0)
    """For one try of one call, from the first byte sent to the last received."""
    max_retries: int = Field(6, ge=0)
    """Further tries after a 408, 409, 429, 5xx, lost connection, time-out, or an answer that is none."""
    first_delay_seconds: float = Field(1, ge=0)
    """Doubled at each retry, then drawn between half of that and all of it."""
    max_delay_seconds: float = Field(60, ge=0)
    """The longest pause; an endpoint that asks for a longer one ends this launch."""
    token_budget: int | None = Field(None, ge=1)
    """Prompt and completion tokens over all launches. Calls in flight finish: at most `concurrency` go beyond."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By the recipe's names of the models."""
    cost_budget: float | None = Field(None, gt=0)
    """US dollars over all launches at `prices`, kept as `token_budget` is."""
    max_failed_calls: int = Field(10, ge=0)
    """Calls that the endpoint may answer with an error text or with what is no chat completion at every try; each
    costs its row. One more ends the launch. Refusals (400, 413, 422) are not among them."""
