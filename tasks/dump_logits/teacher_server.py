"""Requests to a server that runs the teacher: token ids out, JSON back, a bounded number at a time.

The requests live on an event loop in a thread of their own, so that a caller that is asked to stop can drop them at
once. The client library repeats what may succeed later.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

import openai
from pydantic_core import from_json

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.dump_logits.served import TeacherServer
from tasks.runtime.endpoint import QUOTED_CHARS, is_retried, key_from_environment, quoted

POLL_SECONDS = 0.2
"""How soon a request to stop is noticed while answers are awaited."""
CHECK_RETRIES = 2
"""Of the requests before any work: a wrong address should be told in seconds."""


class TeacherServerError(MediusError):
    """The server does not answer now; a later launch may fare better, and goes on after the last finished shard."""

    retryable: ClassVar[bool] = True


class RefusedError(BadInputError):
    """The server will not do what it is asked."""


class ServerClient:
    """One server, for one process. `with ServerClient(settings) as server:` ends what is still in flight."""

    def __init__(self, settings: TeacherServer) -> None:
        """Raises BadInputError where the key's variable is empty."""
        self.settings = settings
        self._key = key_from_environment(settings.api_key_env, "runtime.server.api_key_env")
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=self._key or "none",
            max_retries=settings.max_retries,
            timeout=settings.timeout_seconds,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher server", daemon=True)
        self._model = settings.model

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    # Before any work

    def served_model(self) -> dict[str, Any]:
        """What the server says of the model that is asked for; its `id` is the name from then on.

        Raises:
            BadInputError: it serves another one, or several and runtime.server.model names none.
            TeacherServerError: it does not answer.
        """
        found = self._now("/models")
        models = {str(entry["id"]): entry for entry in found.get("data", ()) if isinstance(entry, dict)}
        names = ", ".join(models) or "nothing"
        if self._model is None and len(models) == 1:
            self._model = next(iter(models))
        if self._model not in models:
            wish = f"not {self._model}" if self._model is not None else "and runtime.server.model says not which"
            raise BadInputError(f"{self.settings.base_url} serves {names}, {wish}; correct runtime.server.model")
        return models[self._model]

    def token_ids(self, text: str) -> list[int] | None:
        """The ids of the server's own tokenizer, no special tokens added; None where it does not tell."""
        # vLLM's tokenizer is beside /v1, not below it.
        url = f"{self.settings.base_url.rstrip('/').removesuffix('/v1')}/tokenize"
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        try:
            found = self._now(url, body)
        except RefusedError:
            return None
        tokens = found.get("tokens")
        return [int(token) for token in tokens] if isinstance(tokens, list) else None

    def complete(self, ids: Sequence[int], **fields: Any) -> dict[str, Any]:
        """One completion of a prompt, at once.

        Raises:
            RefusedError: the server answers with a status of 4xx; the message quotes it.
            TeacherServerError: it does not answer.
        """
        return self._now("/completions", self._body(ids, fields))

    # The work

    def answers(
        self, prompts: Iterable[Sequence[int]], fields: Mapping[str, Any], look: Callable[[], None]
    ) -> Iterator[tuple[int, bytes]]:
        """The bodies of all answers with their prompts' places, in the order in which they come.

        At most `concurrency` are asked for or not yet taken. `look` is called while they are awaited; what it raises
        ends them.

        Raises:
            RefusedError, TeacherServerError: as `complete`; the latter after all tries.
        """
        left = enumerate(prompts)
        pending: dict[Future[bytes], int] = {}
        try:
            while True:
                while len(pending) < self.settings.concurrency and (following := next(left, None)) is not None:
                    place, ids = following
                    work = self._sent("/completions", self._body(ids, fields), self.settings.max_retries)
                    pending[asyncio.run_coroutine_threadsafe(work, self._loop)] = place
                if not pending:
                    return
                done, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                look()
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            for future in pending:
                future.cancel()

    def _body(self, ids: Sequence[int], fields: Mapping[str, Any]) -> dict[str, Any]:
        # vLLM otherwise takes what the model's generation_config.json says.
        plain = {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
        return {"model": self._model, "prompt": [int(token) for token in ids], "max_tokens": 1, **plain, **fields}

    def _now(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        work = self._sent(path, body, CHECK_RETRIES)
        return decoded(asyncio.run_coroutine_threadsafe(work, self._loop).result(), path)

    async def _sent(self, path: str, body: Mapping[str, Any] | None, retries: int) -> bytes:
        client = self._client.with_options(max_retries=retries)
        try:
            if body is None:
                return await client.get(path, cast_to=bytes)
            return await client.post(path, body=body, cast_to=bytes)
        except openai.APIStatusError as error:
            self._raise_for_status(error)
        except openai.APIConnectionError as error:
            why = self._quoted(str(error.__cause__ or error))
            raise TeacherServerError(
                f"{self.settings.base_url} did not answer in {retries + 1} tries ({why}); finished shards are kept: "
                f"run again when it is up, or correct runtime.server"
            ) from None

    def _raise_for_status(self, error: openai.APIStatusError) -> NoReturn:
        what = f"status {error.status_code}: {self._quoted(_message(error.response.text))}"
        if is_retried(error.status_code):
            raise TeacherServerError(
                f"{self.settings.base_url} did not recover in all tries ({what}); finished shards are kept: run again "
                f"when it is well"
            ) from None
        raise RefusedError(
            f"{self.settings.base_url} refuses ({what}); correct runtime.server and the recipe of dump_logits"
        ) from None

    def _quoted(self, text: str) -> str:
        return quoted(text, [self._key])


def decoded(body: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        TeacherServerError: it is none, as where a proxy answers in the server's place.
    """
    try:
        found = from_json(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TeacherServerError(
            f"the answer to {where} is no JSON object: {body[:QUOTED_CHARS]!r}; see what answers at runtime.server, "
            f"and run again"
        )
    return found


def _message(text: str) -> str:
    """The sentence inside an error's JSON, as vLLM and OpenAI send it."""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, AttributeError):
        return text
