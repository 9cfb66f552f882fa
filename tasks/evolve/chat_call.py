"""One try of one chat completion: what comes back is a whole answer, or one of the errors here.

What an endpoint says about itself, whatever its status, never leaves this module as a model's text. The key is taken
out of every message that is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Literal, NoReturn

import openai
from pydantic import BaseModel, ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.redact import secrets_of
from tasks.evolve.calls import Completion, Request
from tasks.evolve.endpoint import Endpoint
from tasks.evolve.parsing import looks_like_endpoint_error
from tasks.runtime.endpoint import is_retried, key_from_environment, quoted

_REFUSED = {400, 413, 422}


class CallFailedError(Exception):
    """One try brought nothing. `retry_after` is the pause that the endpoint asked for, seconds."""

    def __init__(self, what: str, retry_after: float = 0) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class NoAnswerError(CallFailedError):
    """The endpoint is well and sent what is no answer: an error text, or a body that is no chat completion.

    `spent` has no text: the model and the tokens that the endpoint counted for it all the same.
    """

    def __init__(self, what: str, spent: Completion) -> None:
        super().__init__(what)
        self.spent = spent


class RefusedError(Exception):
    """The endpoint will not answer this request, now or later: because of its text, or of what all requests have."""


class _ReplyMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: Literal["stop", "length", "content_filter"]


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Counted(BaseModel):
    """What of a reply that is no answer says what it cost."""

    usage: _Usage | None = None


class _Reply(BaseModel):
    """The part of a chat completion that is used. Anything that does not fit is no completion."""

    choices: list[_Choice]
    model: str = ""
    usage: _Usage | None = None


class ChatCall:
    """Asks an endpoint; without memory, retries or limits."""

    def __init__(self, settings: Endpoint, *, needs_usage: bool) -> None:
        """`needs_usage`: an endpoint that does not count tokens is refused. Raises BadInputError for an empty key."""
        self._settings = settings
        self._needs_usage = needs_usage
        self._key = key_from_environment(settings.api_key_env, "runtime.endpoint.api_key_env")
        # The redaction's own rule: a dummy such as vLLM's EMPTY is no secret, and stands in good answers.
        self._secrets = list(secrets_of({settings.api_key_env or "": self._key or ""}))
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=self._key or "none", max_retries=0, timeout=settings.timeout_seconds
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def __call__(self, request: Request) -> Completion:
        """The answer.

        Raises:
            CallFailedError: another try may bring one.
            RefusedError: the same request would be refused again.
            BadInputError: no request will be answered: the key or the model is wrong.
        """
        sampling = request.sampling
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=sampling.model,
                    messages=[message.model_dump() for message in request.messages],  # type: ignore[misc]
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=request.seed if request.send_seed else openai.omit,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise CallFailedError(f"no answer within {self._settings.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            self._raise_for_status(error)
        except openai.APIConnectionError as error:
            raise CallFailedError(f"connection failed: {self._quoted(str(error.__cause__ or error))}") from None
        return self._checked(response.text, sampling.model)

    def _raise_for_status(self, error: openai.APIStatusError) -> NoReturn:
        status = error.status_code
        what = f"status {status}: {self._quoted(error.response.text)}"
        if is_retried(status):
            raise CallFailedError(what, _retry_after(error.response.headers)) from None
        if status in _REFUSED:
            raise RefusedError(what) from None
        raise BadInputError(
            f"{self._settings.base_url} refuses to work ({what}); check runtime.endpoint.base_url, the variable "
            f"named in api_key_env, and the model names in the recipe; finished calls are kept"
        ) from None

    def _checked(self, body: str, model: str) -> Completion:
        try:
            reply = _Reply.model_validate_json(body)
            choice = reply.choices[0]
        except (ValidationError, IndexError):
            what = f"the answer is no chat completion: {self._quoted(body)}"
            raise NoAnswerError(what, _spent(model, _counted(body))) from None
        if self._needs_usage and reply.usage is None:
            raise BadInputError(
                f"{self._settings.base_url} does not say how many tokens a call took, so the limit in "
                f"runtime.endpoint.token_budget or cost_budget cannot be kept; remove it, or use an endpoint that "
                f"reports usage"
            )
        text = choice.message.content or ""
        spent = _spent(model, reply.usage)
        if looks_like_endpoint_error(text) or any(secret in text for secret in self._secrets):
            raise NoAnswerError(f"an error text in place of an answer: {self._quoted(text)}", spent)
        refused = choice.message.refusal is not None
        answered = {
            "text": text,
            "finish": "content_filter" if refused else choice.finish_reason,
            "served_model": reply.model,
        }
        return spent.model_copy(update=answered)

    def _quoted(self, text: str) -> str:
        return quoted(text, self._secrets)


def _counted(body: str) -> _Usage | None:
    try:
        return _Counted.model_validate_json(body).usage
    except ValidationError:
        return None


def _spent(model: str, usage: _Usage | None) -> Completion:
    """A call that brought nothing, with its tokens; none where the endpoint counts none."""
    tokens = usage or _Usage(prompt_tokens=0, completion_tokens=0)
    return Completion(
        text="",
        finish="error",
        model=model,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 for anything else."""
    wish = headers.get("retry-after", "0")
    try:
        seconds = float(wish)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(wish).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds)
