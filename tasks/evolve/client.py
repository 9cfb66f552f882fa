"""Calls to an OpenAI-compatible endpoint: recorded once, limited, retried, and within a budget."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import ClassVar

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.evolve.budget import Spending
from tasks.evolve.calls import CallLedger, Completion, Message, Request
from tasks.evolve.chat_call import CallFailedError, ChatCall, NoAnswerError, RefusedError
from tasks.evolve.endpoint import Endpoint

_PLAIN = (Message(role="user", content="Say yes."),)
"""A question that nobody has a reason to refuse."""


class EndpointError(MediusError):
    """The endpoint does not answer, or not with what the protocol asks for; a later launch may fare better."""

    retryable: ClassVar[bool] = True


class StoppingError(Exception):
    """The launch is ending: no new call is begun."""


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
        self.spending = Spending(settings, ledger)
        self._call = ChatCall(settings, needs_usage=self.spending.needs_usage)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._tasks: dict[str, asyncio.Task[Completion]] = {}
        self._counted: dict[str, Completion] = {}

    def used(self) -> dict[str, Completion]:
        """The answers that this run is made of by their requests' digests, whichever launch made them."""
        done = {
            digest: task.result()
            for digest, task in self._tasks.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }
        return self._counted | {digest: each for digest, each in done.items() if each.finish != "error"}

    def count(self, digests: Iterable[str]) -> None:
        """Makes recorded answers part of this run without asking for them."""
        for digest in digests:
            if (completion := self.ledger.answer(digest)) is not None:
                self._counted[digest] = completion

    def stop(self) -> None:
        """Lets the calls in flight finish and be recorded; all others raise StoppingError."""
        self._stopping.set()

    async def complete(self, request: Request) -> Completion:
        """The answer to a request; equal requests share one call.

        Raises:
            BadInputError: the key, the model or its sampling is wrong, or the budget is spent.
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
        await self._call.close()

    async def _answer(self, request: Request) -> Completion:
        completion = self.ledger.get(request)
        if completion is None:
            async with self._slots:
                completion = await self._ask(request)
                if completion.finish != "error":
                    completion = await self.ledger.record(request, completion)
                    self.spending.add(completion)
        self.num_answered += 1
        return completion

    async def _ask(self, request: Request) -> Completion:
        try:
            return await self._tried(request)
        except RefusedError as error:
            return await self._refused(request, str(error))

    async def _refused(self, request: Request, what: str) -> Completion:
        """What is recorded of a request that the endpoint will not answer: it would refuse it again at each launch.

        A filter, a prompt beyond the context and a parameter that no call may have end with the same statuses, and
        each server words them in its own way. So the same model is asked a plain question under the same sampling.

        Raises:
            BadInputError: that is refused, too, so that the request's text is not the reason.
        """
        plain = Request(sampling=request.sampling, messages=_PLAIN, seed=request.seed, send_seed=request.send_seed)
        try:
            answered = await self._tried(plain)
        except RefusedError:
            raise self._stopped_by(
                BadInputError(
                    f"{self.settings.base_url} refuses whatever {request.sampling.model} is asked ({what}); correct "
                    f"the name of the model or its sampling in evolve.recipe.source, or send_seed; finished calls are "
                    f"kept"
                )
            ) from None
        if answered.finish == "error":
            return answered
        spent = answered.model_copy(update={"text": "", "finish": "error"})
        await self.ledger.record_unanswered(spent)
        self.spending.add_unanswered(spent)
        return Completion(text="", finish="content_filter", model=request.sampling.model)

    async def _tried(self, request: Request) -> Completion:
        """The answer, after as many tries as are allowed. Raises RefusedError beside what `complete` raises."""
        settings = self.settings
        for attempt in range(settings.max_retries + 1):
            self._check_may_call()
            try:
                return await self._call(request)
            except MediusError as error:
                raise self._stopped_by(error) from None
            except CallFailedError as error:
                if isinstance(error, NoAnswerError) and error.spent.tokens:
                    await self.ledger.record_unanswered(error.spent)
                    self.spending.add_unanswered(error.spent)
                if attempt == settings.max_retries:
                    if isinstance(error, NoAnswerError):
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
        try:
            self.spending.check()
        except MediusError as error:
            raise self._stopped_by(error) from None

    def _failed(self, what: str) -> Completion:
        self.num_failed += 1
        if self.num_failed > self.settings.max_failed_calls:
            raise self._stopped_by(
                EndpointError(
                    f"{self.settings.base_url} answered {self.num_failed} calls with an error text or with no chat "
                    f"completion, the last one with: {what}; finished calls are kept: mend the endpoint and run "
                    f"again, or raise runtime.endpoint.max_failed_calls"
                )
            ) from None
        return Completion(text="", finish="error")

    async def _pause(self, attempt: int, error: CallFailedError) -> None:
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
