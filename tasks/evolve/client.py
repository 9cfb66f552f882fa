"""Calls to an OpenAI-compatible endpoint: recorded once, limited, retried, and within a budget.

What an endpoint says about itself, whatever its status, never leaves this module as a model's text. The key is read
from the environment here and is taken out of every message that is raised.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from typing import ClassVar, Literal, NoReturn

import openai
from pydantic import BaseModel, ValidationError

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.evolve.calls import CallLedger, Completion, Request
from tasks.evolve.parsing import looks_like_endpoint_error
from tasks.evolve.stage import Endpoint

_RETRIED = {408, 409, 429}
_REFUSED = {400, 413, 422}
_QUOTED_CHARS = 300


class EndpointError(MediusError):
    """The endpoint does not answer, or not with what the protocol asks for; a later launch may fare better."""

    retryable: ClassVar[bool] = True


class StoppingError(Exception):
    """The launch is ending: no new call is begun."""


class _CallFailedError(Exception):
    """One try brought nothing. `retry_after` is the pause that the endpoint asked for, seconds."""

    def __init__(self, what: str, retry_after: float = 0) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class _RefusedError(Exception):
    """The endpoint will not answer this very request."""


class _ErrorTextError(_CallFailedError):
    """An error of the endpoint came as if it were the model's answer."""


class _ReplyMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: Literal["stop", "length", "content_filter"]


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Reply(BaseModel):
    """The part of a chat completion that is used. Anything that does not fit is no completion."""

    choices: list[_Choice]
    model: str = ""
    usage: _Usage | None = None


class RecordedEndpoint:
    """`complete` answers a request from the ledger, or asks for it once and records it first."""

    def __init__(self, settings: Endpoint, ledger: CallLedger) -> None:
        self.settings = settings
        self.ledger = ledger
        self.num_answered = 0
        """Different calls answered, from the ledger or by the endpoint."""
        self.num_retries = 0
        self.num_failed = 0
        self._stopping = asyncio.Event()
        self._cause: MediusError | None = None
        self._spent = sum(completion.tokens for completion in ledger)
        self._key = _key_from_environment(settings.api_key_env)
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=self._key or "none", max_retries=0, timeout=settings.timeout_seconds
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._tasks: dict[str, asyncio.Task[Completion]] = {}

    @property
    def tokens_spent(self) -> int:
        """Over all launches, as far as the endpoint said."""
        return self._spent

    def used(self) -> list[Completion]:
        """The answers that this run is made of, each call once, whichever launch made it."""
        done = [task.result() for task in self._tasks.values() if task.done() and task.exception() is None]
        return [completion for completion in done if completion.finish != "error"]

    def stop(self) -> None:
        """Lets the calls in flight finish and be recorded; all others raise StoppingError."""
        self._stopping.set()

    async def complete(self, request: Request) -> Completion:
        """The answer to a request; equal requests share one call.

        Raises:
            BadInputError: the key or the model is wrong, or the budget is spent.
            EndpointError: the endpoint stayed out of order through all retries.
            StoppingError: `stop` was called.
        """
        task = self._tasks.get(request.digest)
        if task is None:
            task = asyncio.create_task(self._answer(request))
            self._tasks[request.digest] = task
        # A caller that is cancelled must not take a paid call with it.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for the calls in flight, so that what was paid for is recorded."""
        self.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.close()

    async def _answer(self, request: Request) -> Completion:
        completion = self.ledger.get(request)
        if completion is None:
            async with self._slots:
                completion = await self._ask(request)
                if completion.finish != "error":
                    self._spent += completion.tokens
                    completion = await self.ledger.record(request, completion)
        self.num_answered += 1
        return completion

    async def _ask(self, request: Request) -> Completion:
        settings = self.settings
        for attempt in range(settings.max_retries + 1):
            self._check_may_call()
            try:
                return await self._try_once(request)
            except _RefusedError as error:
                return self._failed(str(error))
            except _CallFailedError as error:
                if attempt == settings.max_retries:
                    if isinstance(error, _ErrorTextError):
                        return self._failed(str(error))
                    raise self._stopped_by(
                        EndpointError(
                            f"{settings.base_url} did not answer a call in {attempt + 1} tries ({error}); finished "
                            f"calls are kept: run again when it is well, or raise runtime.endpoint.max_retries"
                        )
                    ) from None
                await self._pause(attempt, error)
        raise AssertionError("the last try either returns or raises")

    def _stopped_by(self, error: MediusError) -> MediusError:
        """Ends the launch; every call that is refused from now on names this one cause."""
        self._cause = self._cause or error
        self._stopping.set()
        return self._cause

    def _check_may_call(self) -> None:
        if self._stopping.is_set():
            raise self._cause or StoppingError
        budget = self.settings.token_budget
        if budget is not None and self._spent >= budget:
            raise self._stopped_by(
                BadInputError(
                    f"the token budget of evolve is spent ({self._spent} of {budget} tokens in {len(self.ledger)} "
                    f"calls, all kept); raise runtime.endpoint.token_budget and run again to go on from there"
                )
            )

    def _failed(self, what: str) -> Completion:
        self.num_failed += 1
        if self.num_failed > self.settings.max_failed_calls:
            raise self._stopped_by(
                EndpointError(
                    f"{self.settings.base_url} refused {self.num_failed} calls or answered them with an error text, "
                    f"the last one with: {what}; finished calls are kept: mend the endpoint or the recipe's sampling "
                    f"and run again, or raise runtime.endpoint.max_failed_calls"
                )
            ) from None
        return Completion(text="", finish="error")

    async def _pause(self, attempt: int, error: _CallFailedError) -> None:
        settings = self.settings
        if error.retry_after > settings.max_delay_seconds:
            raise self._stopped_by(
                EndpointError(
                    f"{settings.base_url} asks for a pause of {error.retry_after:.0f} s ({error}), longer than "
                    f"runtime.endpoint.max_delay_seconds; finished calls are kept: run again after that time"
                )
            ) from None
        self.num_retries += 1
        longest = min(settings.max_delay_seconds, settings.first_delay_seconds * 2**attempt)
        delay = max(error.retry_after, longest * random.uniform(0.5, 1))
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return

    async def _try_once(self, request: Request) -> Completion:
        sampling = request.sampling
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=sampling.model,
                    messages=[message.model_dump() for message in request.messages],  # type: ignore[misc]
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=request.seed if request.send_seed else openai.omit,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise _CallFailedError(f"no answer within {self.settings.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            self._raise_for_status(error)
        except openai.APIConnectionError as error:
            raise _CallFailedError(f"connection failed: {self._quoted(str(error.__cause__ or error))}") from None
        return self._checked(response.text)

    def _raise_for_status(self, error: openai.APIStatusError) -> NoReturn:
        status = error.status_code
        what = f"status {status}: {self._quoted(error.response.text)}"
        if status in _RETRIED or status >= 500:
            raise _CallFailedError(what, _retry_after(error.response.headers)) from None
        if status in _REFUSED:
            raise _RefusedError(what) from None
        raise self._stopped_by(
            BadInputError(
                f"{self.settings.base_url} refuses to work ({what}); check runtime.endpoint.base_url, the variable "
                f"named in api_key_env, and the model names in the recipe; finished calls are kept"
            )
        ) from None

    def _checked(self, body: str) -> Completion:
        try:
            reply = _Reply.model_validate_json(body)
            choice = reply.choices[0]
        except (ValidationError, IndexError):
            raise _CallFailedError(f"the answer is no chat completion: {self._quoted(body)}") from None
        if self.settings.token_budget is not None and reply.usage is None:
            raise self._stopped_by(
                BadInputError(
                    f"{self.settings.base_url} does not say how many tokens a call took, so the limit in "
                    f"runtime.endpoint.token_budget cannot be kept; remove it, or use an endpoint that reports usage"
                )
            )
        text = choice.message.content or ""
        if looks_like_endpoint_error(text) or (self._key is not None and self._key in text):
            raise _ErrorTextError(f"an error text in place of an answer: {self._quoted(text)}")
        refused = choice.message.refusal is not None
        usage = reply.usage or _Usage(prompt_tokens=0, completion_tokens=0)
        return Completion(
            text=text,
            finish="content_filter" if refused else choice.finish_reason,
            served_model=reply.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def _quoted(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:_QUOTED_CHARS]


def _key_from_environment(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise BadInputError(
            f"the environment variable {name}, named in runtime.endpoint.api_key_env, is empty; put the endpoint's key "
            f"into it where the stage runs"
        )
    return key


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for; its form with a date is taken as no wish."""
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
