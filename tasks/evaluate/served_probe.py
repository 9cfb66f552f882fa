"""One short call before the work: whether a server is there, knows the model, and can do what the tasks ask of it."""

from __future__ import annotations

from typing import Any, ClassVar

import requests

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.evaluate.served import ModelServer, ServedModel
from tasks.runtime.endpoint import is_retried, quoted


class ServerError(MediusError):
    """The server of a model does not answer, or not with what the protocol asks for; a later launch may fare better."""

    retryable: ClassVar[bool] = True


def is_refusal(status: int) -> bool:
    """Whether the same request would be refused again."""
    return status >= 400 and not is_retried(status)


def probe(name: str, served: ServedModel, server: ModelServer, key: str | None, tokens: list[int], asker: str) -> None:
    """Makes the call.

    Args:
        name: of the model in the comparison.
        tokens: a prompt of a few, for the interface `completions`.
        asker: a task that needs the log-probabilities of a prompt; empty if none does.

    Raises:
        BadInputError: this server will never do it.
        ServerError: it does not answer now.
    """
    payload: dict[str, Any] = {"model": served.model, "max_tokens": 1, "temperature": 0}
    if served.api == "chat":
        payload["messages"] = [{"role": "user", "content": "Say yes."}]
        path = "chat/completions"
    else:
        payload |= {"prompt": [tokens], **({"echo": True, "logprobs": 1} if asker else {})}
        path = "completions"
    url = f"{server.base_url.rstrip('/')}/{path}"
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        answer = requests.post(url, json=payload, headers=headers, timeout=server.timeout_seconds)
    except requests.RequestException as error:
        raise ServerError(
            f"the server of {name} at {server.base_url} does not answer ({type(error).__name__}); start it, or correct "
            f"evaluate.runtime.servers.{name}, and run again"
        ) from None
    if not answer.ok:
        what = f"status {answer.status_code}: {quoted(answer.text, [key])}"
        if is_refusal(answer.status_code):
            raise BadInputError(
                f"the server of {name} at {url} refuses a first short call ({what}); check base_url and api_key_env in "
                f"evaluate.runtime.servers.{name}, and model and api in evaluate.recipe.served.{name}"
            )
        raise ServerError(f"the server of {name} at {url} is out of order ({what}); run again when it is well")
    if asker and not _has_prompt_logprobs(answer, len(tokens)):
        raise BadInputError(
            f"task {asker} needs the log-probabilities of its prompts, and the server of {name} at {server.base_url} "
            f"does not return them (echo with logprobs in /completions); serve the model by one that does, such as "
            f"vLLM, compare it by its weights, or leave out the task or the model"
        )


def _has_prompt_logprobs(answer: requests.Response, num_tokens: int) -> bool:
    try:
        values = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    # The first token has none, and one more is generated.
    return isinstance(values, list) and len(values) == num_tokens + 1 and None not in values[1:]
